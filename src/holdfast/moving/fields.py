"""TRL's arguments as data: what becomes of each. Read in TRL 1.16.0 with transformers 5.23.0; older names in TRL 0.24.0.

`FIELDS[config]` lists every field of that configuration class, inherited ones included; a field in none of these tables
is unknown, and refused. bench/conformance checks the tables against the installed TRL, field by field and default by
default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

READ_IN = {"trl": "1.16.0", "transformers": "5.23.0"}

# key:     becomes the recipe keys in `said`
# always:  Holdfast is always so, as `said` explains
# aside:   says nothing about what is learnt (machine, memory, speed, logging, hub); left out, for the reason in `said`
# refused: changes what is learnt and cannot be said in a recipe, as `said` explains; TRL's default does not matter
Way = Literal["key", "always", "aside", "refused"]


@dataclass(frozen=True)
class Field:
    """One argument of TRL: its name, the type of its values, TRL's default, and what becomes of it."""

    name: str
    type: Literal["int", "float", "number", "bool", "str", "list", "floats", "dict", "any"]
    default: Any
    way: Way
    said: str


SPEED = "speed or memory of the same computation"
LOGS = "what is shown; a run writes every step's figures to metrics.jsonl, and `holdfast track` shows them elsewhere"
HUB = "uploading; copy RUN/model"
MACHINE = "one process computes a run; batch counts all of a step's judgements"
NUMBERS = "loading of rows; rows are kept as tokens and taken in an order that is a function of the step"
RESUME = "`holdfast resume RUN`; a run that was cut off goes on to the same bytes"
EVAL = "how TRL computes held-out figures; here each is a sum over all rows, divided once"
BF16 = "run.dtype"
ADAPTER = "adapters"


def _table(*rows: tuple[Any, ...]) -> dict[str, Field]:
    return {row[0]: Field(*row) for row in rows}


TRAINING = _table(
    ("output_dir", "str", None, "key", "run.name"),
    ("per_device_train_batch_size", "int", 8, "key", "train.batch, train.micro_batch"),
    ("num_train_epochs", "float", 3.0, "key", "train.epochs"),
    ("max_steps", "int", -1, "key", "train.steps"),
    ("learning_rate", "float", 5e-5, "key", "train.lr"),
    ("lr_scheduler_type", "str", "linear", "key", "train.schedule"),
    ("lr_scheduler_kwargs", "dict", None, "key", "train.lr_end"),
    ("warmup_steps", "float", 0, "key", "train.warmup"),
    ("optim", "str", "adamw_torch_fused", "key", "always AdamW"),
    ("optim_args", "any", None, "refused", "AdamW is built from lr, betas, eps and weight_decay alone"),
    ("weight_decay", "float", 0.0, "key", "train.weight_decay"),
    ("adam_beta1", "float", 0.9, "key", "train.betas"),
    ("adam_beta2", "float", 0.999, "key", "train.betas"),
    ("adam_epsilon", "float", 1e-8, "key", "train.eps"),
    ("optim_target_modules", "any", None, "refused", "it belongs to GaLore and APOLLO, which are not here"),
    ("gradient_accumulation_steps", "int", 1, "key", "train.batch"),
    ("average_tokens_across_devices", "bool", True, "always", "a loss has one normaliser for the whole step"),
    ("max_grad_norm", "float", 1.0, "key", "train.clip"),
    ("label_smoothing_factor", "float", 0.0, "aside", "no effect in TRL: these trainers compute their own loss"),
    ("bf16", "bool", None, "key", BF16),
    ("fp16", "bool", False, "key", BF16),
    ("bf16_full_eval", "bool", False, "aside", EVAL),
    ("fp16_full_eval", "bool", False, "aside", EVAL),
    ("tf32", "bool", None, "aside", "rounding of float32 products; float32 means float32 here"),
    ("activation_checkpointing", "any", None, "aside", SPEED),
    ("activation_checkpointing_kwargs", "dict", None, "aside", SPEED),
    ("gradient_checkpointing", "bool", True, "aside", SPEED),
    ("gradient_checkpointing_kwargs", "dict", None, "aside", SPEED),
    ("torch_compile", "bool", False, "aside", SPEED),
    ("torch_compile_backend", "str", None, "aside", SPEED),
    ("torch_compile_mode", "str", None, "aside", SPEED),
    ("use_liger_kernel", "bool", False, "aside", SPEED),
    ("liger_kernel_config", "dict", None, "aside", SPEED),
    ("use_cache", "bool", False, "aside", SPEED),
    ("neftune_noise_alpha", "float", None, "refused", "noise on the embeddings (NEFTune) is not here"),
    ("torch_empty_cache_steps", "int", None, "aside", SPEED),
    ("auto_find_batch_size", "bool", False, "refused", "a batch that depends on the machine's memory: say its size"),
    ("logging_strategy", "str", "steps", "aside", LOGS),
    ("logging_steps", "float", 10, "aside", LOGS),
    ("logging_first_step", "bool", False, "aside", LOGS),
    ("log_on_each_node", "bool", True, "aside", LOGS),
    ("logging_nan_inf_filter", "bool", True, "always", "a loss that is not finite stops the run, and is not hidden"),
    ("include_num_input_tokens_seen", "str", "no", "aside", LOGS),
    ("log_level", "str", "passive", "aside", LOGS),
    ("log_level_replica", "str", "warning", "aside", LOGS),
    ("disable_tqdm", "bool", None, "aside", LOGS),
    ("report_to", "list", "none", "key", "track.to"),
    ("run_name", "str", None, "key", "run.name"),
    ("project", "str", "huggingface", "aside", LOGS),
    ("trackio_space_id", "str", None, "aside", LOGS),
    ("trackio_bucket_id", "str", None, "aside", LOGS),
    ("trackio_static_space_id", "str", None, "aside", LOGS),
    ("eval_strategy", "str", "no", "key", "train.eval_every"),
    ("eval_steps", "float", None, "key", "train.eval_every"),
    ("eval_delay", "float", 0, "aside", "held-out figures are also taken before the first step"),
    ("per_device_eval_batch_size", "int", 8, "aside", EVAL),
    ("prediction_loss_only", "bool", False, "aside", EVAL),
    (
        "eval_on_start",
        "bool",
        False,
        "always",
        "where there is eval_every, figures are also taken before the first step",
    ),
    ("eval_do_concat_batches", "bool", True, "aside", EVAL),
    ("eval_use_gather_object", "bool", False, "aside", EVAL),
    ("eval_accumulation_steps", "int", None, "aside", EVAL),
    ("include_for_metrics", "list", [], "aside", EVAL),
    ("batch_eval_metrics", "bool", False, "aside", EVAL),
    ("save_only_model", "bool", False, "aside", "a checkpoint holds all that a run needs to go on"),
    ("save_strategy", "str", "steps", "key", "train.checkpoint_every"),
    ("save_steps", "float", 500, "key", "train.checkpoint_every"),
    ("save_on_each_node", "bool", False, "aside", MACHINE),
    ("save_total_limit", "int", None, "key", "train.keep_checkpoints"),
    (
        "enable_jit_checkpoint",
        "bool",
        False,
        "always",
        "a signal ends the step, keeps its state, and `holdfast resume` goes on",
    ),
    ("push_to_hub", "bool", False, "aside", HUB),
    ("hub_token", "str", None, "aside", HUB),
    ("hub_private_repo", "bool", None, "aside", HUB),
    ("hub_model_id", "str", None, "aside", HUB),
    ("hub_strategy", "str", "every_save", "aside", HUB),
    ("hub_always_push", "bool", False, "aside", HUB),
    ("hub_revision", "str", None, "aside", HUB),
    ("load_best_model_at_end", "bool", False, "key", "train.stop_on, train.patience"),
    ("metric_for_best_model", "str", None, "key", "train.stop_on"),
    ("greater_is_better", "bool", None, "key", "train.stop_on"),
    ("ignore_data_skip", "bool", False, "aside", RESUME),
    ("restore_callback_states_from_checkpoint", "bool", False, "aside", RESUME),
    ("full_determinism", "bool", False, "always", "the same recipe gives the same bytes on the same machine"),
    ("seed", "int", 42, "key", "run.seed"),
    ("data_seed", "int", None, "key", "run.seed"),
    ("use_cpu", "bool", False, "key", "run.device"),
    ("accelerator_config", "any", None, "aside", MACHINE),
    ("parallelism_config", "any", None, "aside", MACHINE),
    ("dataloader_drop_last", "bool", False, "always", "every step has `batch` judgements: epochs follow without a gap"),
    ("dataloader_num_workers", "int", 0, "aside", NUMBERS),
    ("dataloader_pin_memory", "bool", True, "aside", NUMBERS),
    ("dataloader_persistent_workers", "bool", False, "aside", NUMBERS),
    ("dataloader_prefetch_factor", "int", None, "aside", NUMBERS),
    ("dataloader_multiprocessing_context", "str", None, "aside", NUMBERS),
    ("dataloader_in_order", "bool", True, "aside", NUMBERS),
    ("remove_unused_columns", "bool", True, "aside", NUMBERS),
    ("label_names", "list", None, "aside", NUMBERS),
    ("train_sampling_strategy", "str", "random", "key", "always shuffled"),
    ("length_column_name", "str", "length", "aside", NUMBERS),
    ("ddp_find_unused_parameters", "bool", None, "aside", MACHINE),
    ("ddp_bucket_cap_mb", "int", None, "aside", MACHINE),
    ("ddp_broadcast_buffers", "bool", None, "aside", MACHINE),
    ("ddp_static_graph", "bool", None, "aside", MACHINE),
    ("ddp_backend", "str", None, "aside", MACHINE),
    ("ddp_timeout", "int", 1800, "aside", MACHINE),
    ("fsdp", "any", None, "aside", MACHINE),
    ("fsdp_config", "any", None, "aside", MACHINE),
    ("deepspeed", "any", None, "aside", MACHINE),
    ("debug", "any", "", "aside", MACHINE),
    ("skip_memory_metrics", "bool", True, "aside", LOGS),
    ("do_train", "bool", False, "aside", "no effect in TRL's scripts: they train"),
    ("do_eval", "bool", False, "aside", "a finished run is evaluated on what it held out"),
    ("do_predict", "bool", False, "aside", "no effect in TRL's scripts"),
    ("resume_from_checkpoint", "any", None, "aside", RESUME),
    ("local_rank", "int", -1, "aside", MACHINE),
)

MODEL_INIT = ("model_init_kwargs", "dict", None, "key", "model.revision, run.dtype")
REMOTE = (
    "trust_remote_code",
    "bool",
    False,
    "refused",
    "no code comes with a model; safetensors and known families only",
)
MOE = ("router_aux_loss_coef", "float", None, "refused", "no load-balancing loss for mixtures of experts")
DROPOUT = ("disable_dropout", "bool", True, "key", "always off")
PROCESSES = ("dataset_num_proc", "int", None, "aside", NUMBERS)
LENGTH = ("max_length", "int", 1024, "key", "text.max_length, text.too_long")
PAD_MULTIPLE = ("pad_to_multiple_of", "any", "auto", "aside", SPEED)
PRECOMPUTE = (
    (
        "precompute_ref_log_probs",
        "bool",
        False,
        "always",
        "the reference's log-probabilities are computed once and kept",
    ),
    ("precompute_ref_batch_size", "int", None, "aside", SPEED),
)
OFFLOAD = ("activation_offloading", "bool", False, "aside", SPEED)
SYNC = (
    ("sync_ref_model", "bool", False, "key", "moving reference"),
    ("ref_model_mixup_alpha", "float", 0.6, "key", "moving reference"),
    ("ref_model_sync_steps", "int", 512, "key", "moving reference"),
)
PAD_TOKEN = ("pad_token", "str", None, "aside", "padding is masked by position, never found by its id")
ENCODER_DECODER = ("is_encoder_decoder", "bool", None, "refused", "policies are decoders")
GENERATE = (
    "generate_during_eval",
    "bool",
    False,
    "aside",
    "samples while training; `holdfast score` and the report come after",
)
COMPLETION = (
    "max_completion_length",
    "int",
    None,
    "refused",
    "one limit, text.max_length, for prompt and response together",
)

_COMMON = _table(
    ("gradient_checkpointing", "bool", True, "aside", SPEED),
    MODEL_INIT, REMOTE, DROPOUT, PROCESSES, LENGTH,
)  # fmt: skip

DPO = {
    **TRAINING,
    **_COMMON,
    **_table(
        ("learning_rate", "float", 1e-6, "key", "train.lr"),
        MOE,
        ("truncation_mode", "str", "keep_start", "key", "text.too_long"),
        (
            "padding_free",
            "bool",
            False,
            "aside",
            "no effect in TRL 1.16, which falls back to padding; here prompts are packed",
        ),
        PAD_MULTIPLE,
        *PRECOMPUTE,
        ("loss_type", "list", ["sigmoid"], "key", "objective.kind"),
        ("loss_weights", "floats", None, "key", "objective.kind"),
        ("ld_alpha", "float", None, "key", "objective.alpha (kind = ld_dpo)"),
        ("f_divergence_type", "str", "reverse_kl", "key", "objective.divergence (kind = f_dpo)"),
        ("f_alpha_divergence_coef", "float", 0.5, "key", "objective.alpha (kind = f_dpo), which is 1 - this"),
        ("label_smoothing", "float", 0.0, "key", "objective.e (kind = rdpo, exo)"),
        ("beta", "float", 0.1, "key", "objective.beta (kind = ipo_avg: tau)"),
        ("use_weighting", "bool", False, "key", "objective.kind = wpo, objective.cap = inf"),
        ("discopop_tau", "float", 0.05, "key", "objective.tau (kind = discopop)"),
        OFFLOAD,
        *SYNC,
        PAD_TOKEN,
    ),
}

KTO = {
    **TRAINING,
    **_COMMON,
    **_table(
        ("learning_rate", "float", 1e-6, "key", "train.lr"),
        ("train_sampling_strategy", "str", "sequential", "key", "always shuffled"),
        MOE,
        PAD_MULTIPLE,
        *PRECOMPUTE,
        ("loss_type", "str", "kto", "key", "objective.kind"),
        ("beta", "float", 0.1, "key", "objective.beta"),
        ("desirable_weight", "float", 1.0, "key", "objective.lam_good"),
        ("undesirable_weight", "float", 1.0, "key", "objective.lam_bad"),
        OFFLOAD,
        *SYNC,
    ),
}

REWARD = {
    **TRAINING,
    **_COMMON,
    **_table(
        ("learning_rate", "float", 1e-4, "key", "train.lr"),
        (
            "chat_template_path",
            "str",
            None,
            "refused",
            "the tokenizer's own chat template is used: save yours into the model's folder",
        ),
        (
            "eos_token",
            "str",
            None,
            "refused",
            "the tokenizer's own stop token is used: save yours into the model's folder",
        ),
        PAD_MULTIPLE,
        ("center_rewards_coefficient", "float", None, "key", "objective.centre"),
        OFFLOAD,
        PAD_TOKEN,
    ),
}

CPO = {
    **TRAINING,
    **_COMMON,
    **_table(
        ("learning_rate", "float", 1e-6, "key", "train.lr"),
        COMPLETION,
        ("beta", "float", 0.1, "key", "objective.beta"),
        ("label_smoothing", "float", 0.0, "key", "no counterpart; soft labels come from the data"),
        ("loss_type", "str", "sigmoid", "key", "objective.kind"),
        ("cpo_alpha", "float", 1.0, "key", "objective.lam (kind = cpo)"),
        ("simpo_gamma", "float", 0.5, "key", "objective.gamma (kind = simpo)"),
        ("alpha", "float", 0.0, "refused", "AlphaPO's reward is not here"),
        GENERATE,
        ENCODER_DECODER,
    ),
}

ORPO = {
    **TRAINING,
    **_COMMON,
    **_table(
        ("learning_rate", "float", 1e-6, "key", "train.lr"),
        COMPLETION,
        ("beta", "float", 0.1, "key", "objective.lam"),
        ("padding_value", "int", None, "aside", "padding is masked by position, never found by its id"),
        GENERATE,
        ENCODER_DECODER,
    ),
}

# What TRL's scripts and command line take beside a configuration: ModelConfig, ScriptArguments, DatasetMixtureConfig.
SCRIPT = _table(
    ("model_name_or_path", "str", None, "key", "model.path or model.hub"),
    ("model_revision", "str", "main", "key", "model.revision"),
    ("dtype", "str", "float32", "key", BF16),
    ("attn_implementation", "str", None, "aside", "[model] compute chooses between packed and padded attention"),
    ("use_peft", "bool", False, "key", ADAPTER),
    ("lora_r", "int", 16, "key", ADAPTER),
    ("lora_alpha", "int", 32, "key", ADAPTER),
    ("lora_dropout", "float", 0.05, "key", ADAPTER),
    ("lora_target_modules", "list", None, "key", ADAPTER),
    ("lora_target_parameters", "list", None, "key", ADAPTER),
    ("lora_modules_to_save", "list", None, "key", ADAPTER),
    ("lora_task_type", "str", "CAUSAL_LM", "aside", "the objective says what the model is"),
    ("use_rslora", "bool", False, "key", ADAPTER),
    ("use_dora", "bool", False, "key", ADAPTER),
    ("load_in_8bit", "bool", False, "refused", "weights are float32 or bfloat16"),
    ("load_in_4bit", "bool", False, "refused", "weights are float32 or bfloat16"),
    ("bnb_4bit_quant_type", "str", "nf4", "aside", "no effect in TRL without load_in_4bit"),
    ("use_bnb_nested_quant", "bool", False, "aside", "no effect in TRL without load_in_4bit"),
    ("bnb_4bit_quant_storage", "str", None, "aside", "no effect in TRL without load_in_4bit"),
    ("dataset_name", "str", None, "key", "data.dataset"),
    ("dataset_config", "str", None, "aside", "of the file that is frozen"),
    ("dataset_train_split", "str", "train", "aside", "of the file that is frozen; [data.split] says what is held out"),
    (
        "dataset_test_split",
        "str",
        "test",
        "aside",
        "[data.split] holds out by prompt, so that no prompt is on two sides",
    ),
    ("dataset_streaming", "bool", False, "aside", NUMBERS),
    ("ignore_bias_buffers", "bool", False, "aside", MACHINE),
    (
        "datasets",
        "any",
        [],
        "refused",
        "freeze the files of a mixture together into one dataset: holdfast freeze A B -o DIR",
    ),
    ("streaming", "bool", False, "aside", NUMBERS),
    ("test_split_size", "float", None, "key", "data.split.validation"),
    ("config", "str", None, "aside", "the file that was read"),
)

# Names of TRL 0.24 and transformers 4.57 that are gone or renamed in READ_IN, by where they were.
_OLD_TRAINING = _table(
    ("overwrite_output_dir", "bool", False, "aside", "a run folder is never written over"),
    ("per_gpu_train_batch_size", "int", None, "key", "train.batch, train.micro_batch"),
    ("per_gpu_eval_batch_size", "int", None, "aside", EVAL),
    ("warmup_ratio", "float", 0.0, "key", "train.warmup"),
    ("evaluation_strategy", "str", "no", "key", "train.eval_every"),
    ("logging_dir", "str", None, "aside", LOGS),
    ("save_safetensors", "bool", True, "always", "weights are only ever safetensors"),
    ("no_cuda", "bool", False, "key", "run.device"),
    ("use_mps_device", "bool", False, "aside", MACHINE),
    ("jit_mode_eval", "bool", False, "aside", SPEED),
    ("fp16_opt_level", "str", "O1", "aside", SPEED),
    ("half_precision_backend", "str", "auto", "aside", SPEED),
    ("tpu_num_cores", "int", None, "aside", MACHINE),
    ("tpu_metrics_debug", "bool", False, "aside", LOGS),
    ("past_index", "int", -1, "aside", "no effect in TRL: it is for generation with a cache"),
    ("fsdp_min_num_params", "int", 0, "aside", MACHINE),
    ("fsdp_transformer_layer_cls_to_wrap", "str", None, "aside", MACHINE),
    ("adafactor", "bool", False, "refused", "AdamW is the optimiser"),
    ("group_by_length", "bool", False, "refused", "an order by length is another training; rows are shuffled, and padding costs nothing when packed"),
    ("use_legacy_prediction_loop", "bool", False, "aside", EVAL),
    ("include_inputs_for_metrics", "bool", False, "aside", EVAL),
    ("fp16_backend", "str", "auto", "aside", SPEED),
    ("push_to_hub_model_id", "str", None, "aside", HUB),
    ("push_to_hub_organization", "str", None, "aside", HUB),
    ("push_to_hub_token", "str", None, "aside", HUB),
    ("mp_parameters", "str", "", "aside", MACHINE),
    ("torchdynamo", "str", None, "aside", SPEED),
    ("ray_scope", "str", "last", "aside", MACHINE),
    ("include_tokens_per_second", "bool", False, "aside", LOGS),
    ("torch_dtype", "str", None, "key", BF16),
    ("gradient_checkpointing_use_reentrant", "bool", False, "aside", SPEED),
)  # fmt: skip
_PROMPT = (
    "max_prompt_length",
    "int",
    512,
    "refused",
    "one limit, text.max_length, for prompt and response together; text.too_long says what is cut",
)
_LABEL_PAD = ("label_pad_token_id", "int", -100, "aside", "padding is masked by position, never found by its id")
_PADDING = ("padding_value", "int", None, "aside", "padding is masked by position, never found by its id")
_KEEP_END = ("truncation_mode", "str", "keep_end", "key", "text.too_long")
_LIGER = ("use_liger_loss", "bool", False, "aside", SPEED)
_BASE_NAME = ("base_model_attribute_name", "str", "model", "aside", SPEED)
_REF_INIT = ("ref_model_init_kwargs", "dict", None, "refused", "the reference is the model that training starts from")

OLDER: Mapping[str, Mapping[str, Field]] = {
    "dpo": {
        **_OLD_TRAINING,
        **_table(
            _REF_INIT, _PROMPT, COMPLETION, _LABEL_PAD, _PADDING, _LIGER, _BASE_NAME, GENERATE,
            ("model_adapter_name", "str", None, "aside", "a name inside the program"),
            ("ref_adapter_name", "str", None, "refused", "the reference is the model that training starts from"),
            ("force_use_ref_model", "bool", False, "aside", "no effect on what is learnt where the reference is the start"),
            ("use_logits_to_keep", "bool", False, "always", "only response tokens meet the vocabulary"),
            ("use_num_logits_to_keep", "bool", False, "always", "only response tokens meet the vocabulary"),
            ("tools", "any", None, "refused", "tools stand in the rows' messages"),
            ("reference_free", "bool", False, "refused", "a loss without reference: cpo, simpo, orpo, slic"),
            ("rpo_alpha", "float", None, "key", "objective.kind = rpo, objective.eta"),
            ENCODER_DECODER,
        ),
    },
    "kto": {
        **_OLD_TRAINING,
        **_table(_REF_INIT, _PROMPT, COMPLETION, _LABEL_PAD, _PADDING, _KEEP_END, _LIGER, _BASE_NAME, GENERATE, ENCODER_DECODER),
    },
    "reward": _OLD_TRAINING,
    "cpo": {**_OLD_TRAINING, **_table(_PROMPT, _LABEL_PAD, _PADDING, _KEEP_END)},
    "orpo": {**_OLD_TRAINING, **_table(_PROMPT, _LABEL_PAD, _KEEP_END)},
}  # fmt: skip

FIELDS: Mapping[str, Mapping[str, Field]] = {"dpo": DPO, "kto": KTO, "reward": REWARD, "cpo": CPO, "orpo": ORPO}
METHODS = tuple(FIELDS)


def known(method: str) -> dict[str, Field]:
    """Every argument that may stand beside `method`: of its configuration, of TRL's scripts, and older names."""
    return {**OLDER[method], **SCRIPT, **FIELDS[method]}


def only_in(names: Iterable[str]) -> set[str]:
    """The methods whose known arguments include all of `names`."""
    return {method for method in METHODS if set(names) <= set(known(method))}
