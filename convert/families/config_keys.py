"""Keys of a config.json that transformers reads for all models; made by read_keys.py."""

TRANSFORMERS = "5.24.0"  # the release that does

COMMON = frozenset(
    """
    _attn_implementation _attn_implementation_internal _commit_hash _experts_implementation
    _experts_implementation_internal _from_auto _from_pipeline _heterogeneity_spec _name_or_path
    _output_attentions _post_init_done _rope_type_labels allow_global_per_layer_attribute_access
    architectures attention_chunk_size attention_dropout attn_implementation auto_map
    base_model_pp_plan base_model_tp_plan bos_token_id chunk_size_feed_forward configuration_files
    decoder default_rope_type default_theta device_map device_mesh disable_mmap
    disk_offload_folder download_kwargs dtype dtype_plan embed_dim eos_token_id
    experts_implementation features_only fusion_config generator gradient_checkpointing head_dim
    hf_quantizer hidden_size id2label ignore_keys_at_rope_validation ignore_mismatched_sizes
    init_std initializer_factor initializer_range is_causal is_encoder_decoder is_heterogeneous
    kv_sharing_modes label2id layer_types max_position_embeddings model_type mtp_layer_types
    name_or_path num_attention_heads num_channels num_heads num_hidden_layers num_key_value_heads
    num_labels number_of_conv_states offload_buffers original_max_position_embeddings out_indices
    output_attentions output_hidden_states pad_token_id partial_rotary_factor per_layer_attributes
    per_layer_config pretrained_cfg pretrained_model_name_or_path problem_type quantization_config
    return_dict rope_parameters rope_scaling rope_theta sep_token_id
    serialize_explicit_per_layer_config sharded_metadata sliding_window sub_configs
    sub_configs_defaults text_config text_encoder tie_last_hidden_states tie_word_embeddings
    torch_dtype transformers_version transformers_weights use_cache use_safetensors
    vision_aspect_ratio vision_config vision_feature_layer vision_feature_select_strategy
    weight_mapping weights_only
    """.split()
)
ROPE_READ: dict[str, frozenset[str]] = {  # rope_type -> keys; "": all types
    "": frozenset(
        (
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "rope_theta",
            "rope_type",
            "type",
        )
    ),
    "default": frozenset(
        (
            "partial_rotary_factor",
            "rope_theta",
        )
    ),
    "linear": frozenset(
        (
            "factor",
            "partial_rotary_factor",
            "rope_theta",
        )
    ),
    "llama3": frozenset(
        (
            "factor",
            "high_freq_factor",
            "low_freq_factor",
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "rope_theta",
        )
    ),
    "yarn": frozenset(
        (
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "factor",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "rope_theta",
            "truncate",
        )
    ),
    "dynamic": frozenset(
        (
            "factor",
            "partial_rotary_factor",
            "rope_theta",
        )
    ),
    "longrope": frozenset(
        (
            "attention_factor",
            "factor",
            "long_factor",
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "rope_theta",
            "short_factor",
        )
    ),
}
