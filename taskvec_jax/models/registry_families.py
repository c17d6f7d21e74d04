"""Named models of the families beside LLaMA, Pythia and GPT-J, as a table of their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskvec_jax.transformer.config import DecoderConfig

# V vocabulary, L layers, D width, H heads, G key/value heads, K head size, F MLP width, eps of the
# norms, base of RoPE, T tokens of context; options: `tied` unembedding, `window` of sliding
# attention, `every` how many layers one has none, `cap` of logits, `per` what queries are divided
# by the root of, `scales` of Granite (embedding, attention, residual, logits).
_TABLE = """
# name             family  repository                           V  L    D  H  G   K     F  eps  base      T options
qwen2.5-0.5b       qwen2   Qwen/Qwen2.5-0.5B               151936 24  896 14  2  64  4864 1e-6   1e6  32768 tied
qwen2.5-1.5b       qwen2   Qwen/Qwen2.5-1.5B               151936 28 1536 12  2 128  8960 1e-6   1e6 131072 tied
qwen2.5-3b         qwen2   Qwen/Qwen2.5-3B                 151936 36 2048 16  2 128 11008 1e-6   1e6  32768 tied
qwen2.5-7b         qwen2   Qwen/Qwen2.5-7B                 152064 28 3584 28  4 128 18944 1e-6   1e6 131072
qwen2.5-14b        qwen2   Qwen/Qwen2.5-14B                152064 48 5120 40  8 128 13824 1e-5   1e6 131072
qwen2.5-32b        qwen2   Qwen/Qwen2.5-32B                152064 64 5120 40  8 128 27648 1e-5   1e6 131072
qwen2.5-72b        qwen2   Qwen/Qwen2.5-72B                152064 80 8192 64  8 128 29568 1e-5   1e6 131072
qwen2.5-0.5b-instruct qwen2 Qwen/Qwen2.5-0.5B-Instruct     151936 24  896 14  2  64  4864 1e-6   1e6  32768 tied
qwen2.5-1.5b-instruct qwen2 Qwen/Qwen2.5-1.5B-Instruct     151936 28 1536 12  2 128  8960 1e-6   1e6  32768 tied
qwen2.5-3b-instruct  qwen2 Qwen/Qwen2.5-3B-Instruct        151936 36 2048 16  2 128 11008 1e-6   1e6  32768 tied
qwen2.5-7b-instruct  qwen2 Qwen/Qwen2.5-7B-Instruct        152064 28 3584 28  4 128 18944 1e-6   1e6  32768
qwen2.5-14b-instruct qwen2 Qwen/Qwen2.5-14B-Instruct       152064 48 5120 40  8 128 13824 1e-6   1e6  32768
qwen2.5-32b-instruct qwen2 Qwen/Qwen2.5-32B-Instruct       152064 64 5120 40  8 128 27648 1e-6   1e6  32768
qwen2.5-72b-instruct qwen2 Qwen/Qwen2.5-72B-Instruct       152064 80 8192 64  8 128 29568 1e-6   1e6  32768
qwen3-0.6b         qwen3   Qwen/Qwen3-0.6B                 151936 28 1024 16  8 128  3072 1e-6   1e6  40960 tied
qwen3-1.7b         qwen3   Qwen/Qwen3-1.7B                 151936 28 2048 16  8 128  6144 1e-6   1e6  40960 tied
qwen3-4b           qwen3   Qwen/Qwen3-4B                   151936 36 2560 32  8 128  9728 1e-6   1e6  40960 tied
qwen3-8b           qwen3   Qwen/Qwen3-8B                   151936 36 4096 32  8 128 12288 1e-6   1e6  40960
qwen3-14b          qwen3   Qwen/Qwen3-14B                  151936 40 5120 40  8 128 17408 1e-6   1e6  40960
qwen3-32b          qwen3   Qwen/Qwen3-32B                  151936 64 5120 64  8 128 25600 1e-6   1e6  40960
qwen3-0.6b-base    qwen3   Qwen/Qwen3-0.6B-Base            151936 28 1024 16  8 128  3072 1e-6   1e6  32768 tied
qwen3-1.7b-base    qwen3   Qwen/Qwen3-1.7B-Base            151936 28 2048 16  8 128  6144 1e-6   1e6  32768 tied
qwen3-4b-base      qwen3   Qwen/Qwen3-4B-Base              151936 36 2560 32  8 128  9728 1e-6   1e6  32768 tied
qwen3-8b-base      qwen3   Qwen/Qwen3-8B-Base              151936 36 4096 32  8 128 12288 1e-6   1e6  32768
qwen3-14b-base     qwen3   Qwen/Qwen3-14B-Base             151936 40 5120 40  8 128 17408 1e-6   1e6  32768
gpt2               gpt2    openai-community/gpt2            50257 12  768 12 12  64  3072 1e-5   1e4   1024 tied
gpt2-medium        gpt2    openai-community/gpt2-medium     50257 24 1024 16 16  64  4096 1e-5   1e4   1024 tied
gpt2-large         gpt2    openai-community/gpt2-large      50257 36 1280 20 20  64  5120 1e-5   1e4   1024 tied
gpt2-xl            gpt2    openai-community/gpt2-xl         50257 48 1600 25 25  64  6400 1e-5   1e4   1024 tied
olmo-1b            olmo    allenai/OLMo-1B-hf               50304 16 2048 16 16 128  8192 1e-5   1e4   2048 tied
olmo-7b            olmo    allenai/OLMo-7B-hf               50304 32 4096 32 32 128 11008 1e-5   1e4   2048
olmo-2-1b          olmo2   allenai/OLMo-2-0425-1B          100352 16 2048 16 16 128  8192 1e-6   5e5   4096
olmo-2-7b          olmo2   allenai/OLMo-2-1124-7B          100352 32 4096 32 32 128 11008 1e-6   5e5   4096
olmo-2-13b         olmo2   allenai/OLMo-2-1124-13B         100352 40 5120 40 40 128 13824 1e-6   5e5   4096
olmo-2-32b         olmo2   allenai/OLMo-2-0325-32B         100352 64 5120 40  8 128 27648 1e-6   5e5   4096
olmo-2-1b-instruct  olmo2  allenai/OLMo-2-0425-1B-Instruct 100352 16 2048 16 16 128  8192 1e-6   5e5   4096
olmo-2-7b-instruct  olmo2  allenai/OLMo-2-1124-7B-Instruct 100352 32 4096 32 32 128 11008 1e-6   5e5   4096
olmo-2-13b-instruct olmo2  allenai/OLMo-2-1124-13B-Instruct 100352 40 5120 40 40 128 13824 1e-6  5e5   4096
olmo-2-32b-instruct olmo2  allenai/OLMo-2-0325-32B-Instruct 100352 64 5120 40  8 128 27648 1e-6  5e5   4096
gemma-2b           gemma   google/gemma-2b                 256000 18 2048  8  1 256 16384 1e-6   1e4   8192 tied
gemma-7b           gemma   google/gemma-7b                 256000 28 3072 16 16 256 24576 1e-6   1e4   8192 tied
gemma-2-2b         gemma2  google/gemma-2-2b               256000 26 2304  8  4 256  9216 1e-6   1e4   8192 tied window=4096 every=2 per=256
gemma-2-9b         gemma2  google/gemma-2-9b               256000 42 3584 16  8 256 14336 1e-6   1e4   8192 tied window=4096 every=2 per=256
gemma-2-27b        gemma2  google/gemma-2-27b              256000 46 4608 32 16 128 36864 1e-6   1e4   8192 tied window=4096 every=2 per=144
gemma-2-2b-it      gemma2  google/gemma-2-2b-it            256000 26 2304  8  4 256  9216 1e-6   1e4   8192 tied window=4096 every=2 per=256
gemma-2-9b-it      gemma2  google/gemma-2-9b-it            256000 42 3584 16  8 256 14336 1e-6   1e4   8192 tied window=4096 every=2 per=256
gemma-2-27b-it     gemma2  google/gemma-2-27b-it           256000 46 4608 32 16 128 36864 1e-6   1e4   8192 tied window=4096 every=2 per=144
gemma-3-270m       gemma3  -                               262144 18  640  4  1 256  2048 1e-6   1e6  32768 tied window=512 every=6 per=256
gemma-3-270m-it    gemma3  google/gemma-3-270m-it          262144 18  640  4  1 256  2048 1e-6   1e6  32768 tied window=512 every=6 per=256
gemma-3-1b         gemma3  google/gemma-3-1b-pt            262144 26 1152  4  1 256  6912 1e-6   1e6  32768 tied window=512 every=6 per=256
gemma-3-1b-it      gemma3  google/gemma-3-1b-it            262144 26 1152  4  1 256  6912 1e-6   1e6  32768 tied window=512 every=6 per=256
gemma-3-4b         gemma3  google/gemma-3-4b-pt            262208 34 2560  8  4 256 10240 1e-6   1e6 131072 tied window=1024 every=6 per=256
gemma-3-12b        gemma3  google/gemma-3-12b-pt           262208 48 3840 16  8 256 15360 1e-6   1e6 131072 tied window=1024 every=6 per=256
gemma-3-27b        gemma3  google/gemma-3-27b-pt           262208 62 5376 32 16 128 21504 1e-6   1e6 131072 tied window=1024 every=6 per=168
gemma-3-4b-it      gemma3  google/gemma-3-4b-it            262208 34 2560  8  4 256 10240 1e-6   1e6 131072 tied window=1024 every=6 per=256
gemma-3-12b-it     gemma3  google/gemma-3-12b-it           262208 48 3840 16  8 256 15360 1e-6   1e6 131072 tied window=1024 every=6 per=256
gemma-3-27b-it     gemma3  google/gemma-3-27b-it           262208 62 5376 32 16 128 21504 1e-6   1e6 131072 tied window=1024 every=6 per=168
phi-3-mini         phi3    microsoft/Phi-3-mini-4k-instruct 32064 32 3072 32 32  96  8192 1e-5   1e4   4096 window=2047
phi-4              phi3    microsoft/phi-4                 100352 40 5120 40 10 128 17920 1e-5 2.5e5  16384
granite-3-2b       granite ibm-granite/granite-3.0-2b-base  49155 40 2048 32  8  64  8192 1e-5   1e4   4096 tied scales=12,0.015625,0.22,8
granite-3-2b-instruct granite ibm-granite/granite-3.0-2b-instruct  49155 40 2048 32  8  64  8192 1e-5   1e4   4096 tied scales=12,0.015625,0.22,8
granite-3-8b       granite ibm-granite/granite-3.0-8b-base  49155 40 4096 32  8 128 12800 1e-5   1e4   4096 tied scales=12,0.0078125,0.22,16
granite-3-8b-instruct granite ibm-granite/granite-3.0-8b-instruct  49155 40 4096 32  8 128 12800 1e-5   1e4   4096 tied scales=12,0.0078125,0.22,16
qwen2.5-coder-1.5b-instruct qwen2 -                        151936 28 1536 12  2 128  8960 1e-6   1e6  32768
falcon3-1b         llama   tiiuae/Falcon3-1B-Base          131072 18 2048  8  4 256  8192 1e-6 1000042 4096
falcon3-7b         llama   tiiuae/Falcon3-7B-Base          131072 28 3072 12  4 256 23040 1e-6 1000042 32768
falcon3-10b        llama   tiiuae/Falcon3-10B-Base         131072 40 3072 12  4 256 23040 1e-6 1000042 32768
yi-6b              llama   01-ai/Yi-6B                      64000 32 4096 32  4 128 11008 1e-5   5e6   4096
yi-34b             llama   01-ai/Yi-34B                     64000 60 7168 56  8 128 20480 1e-5   5e6   4096
deepseek-llm-7b    llama   deepseek-ai/deepseek-llm-7b-base 102400 30 4096 32 32 128 11008 1e-6  1e4   4096
"""  # noqa: E501
_OF_FAMILY: dict[str, dict[str, Any]] = {  # what all models of a family have
    "gpt2": {
        "rope_dim": 0,
        "learned_positions": True,
        "attention_bias": True,
        "mlp_bias": True,
        "gelu": "tanh",
    },
    "gemma": {"gelu": "tanh"},
    "gemma2": {"gelu": "tanh", "attention_softcap": 50.0, "logit_softcap": 30.0},
    "gemma3": {"gelu": "tanh", "window_rope_base": 10_000.0},
}


def _config(family: str, numbers: Sequence[str], options: dict[str, str]) -> DecoderConfig:
    """The config of a line of the table."""
    sizes = [int(number) for number in numbers[:7]]
    vocab_size, num_layers, width, heads, kv_heads, head_dim, mlp_width = sizes
    fields: dict[str, Any] = {"rope_dim": head_dim, **_OF_FAMILY.get(family, {})}
    if family.startswith("gemma"):
        fields["embed_scale"] = width**0.5
    if "window" in options:
        fields["sliding_window"] = int(options["window"])
    if "every" in options:
        every = int(options["every"])
        fields["window_layers"] = tuple((i + 1) % every != 0 for i in range(num_layers))
    if "per" in options:
        fields["attention_scale"] = float(options["per"]) ** -0.5
    if "scales" in options:
        names = ("embed_scale", "attention_scale", "residual_scale", "logit_divisor")
        fields |= zip(names, map(float, options["scales"].split(",")), strict=True)
    return DecoderConfig(
        family=family,
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        norm_eps=float(numbers[7]),
        rope_base=float(numbers[8]),
        max_length=int(numbers[9]),
        tied_unembed="tied" in options,
        **fields,
    )


def named_configs() -> dict[str, tuple[str, DecoderConfig]]:
    """Name -> repository of the Hugging Face hub ("-": it comes from elsewhere), and config."""
    found = {}
    for line in _TABLE.strip().splitlines()[1:]:
        name, family, repository, *rest = line.split()
        options = {key: value for key, _, value in (word.partition("=") for word in rest[10:])}
        found[name] = (repository, _config(family, rest[:10], options))
    return found
