"""Models: what a policy says of responses (log-probabilities) and what a reward model does (scores), packed or padded.

Both wrap an ordinary `transformers` model and leave it one: it loads from and saves to ordinary folders. Packed
computation is used where the model can; whether it can is not looked up in a list of names but tried, on a few tokens,
against the plain padded forward.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from holdfast.data.ragged import Ragged
from holdfast.errors import HoldfastError
from holdfast.language import adapters, logprob
from holdfast.language.attention import NAME, CannotPack, attending
from holdfast.language.logprob import Head, token_logps
from holdfast.language.packing import Batch, Groups, Packed, Padded, TokenSource, pack, pad
from holdfast.training.checkpoint import weights_digest
from holdfast.training.determinism import derive
from holdfast.training.ledger import sync_path, sync_tree
from holdfast.training.products import Linear, even, quicken
from holdfast.training.ranks import here

T = TypeVar("T")
Compute = Literal["auto", "packed", "padded"]
HEADS = "heads.safetensors"  # all score heads of a reward model, beside its folder's model

# Between the packed and the padded forward of the trial; float error stays far below, another formula far above.
TRIAL_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class Logps:
    """Log-probabilities of a batch's responses. token_N: per token; owner_N: whose; sum_R: per response, fp32;
    length_R: its tokens. Where asked for, at each token's prediction: squares_N, log sum_v pi(v)^2, without graph;
    kl_N, KL(reference || policy), with graph.
    """

    token_N: torch.Tensor
    owner_N: torch.Tensor
    sum_R: torch.Tensor
    length_R: torch.Tensor
    squares_N: torch.Tensor | None = None
    kl_N: torch.Tensor | None = None

    def sums(self, value_N: torch.Tensor) -> torch.Tensor:
        """(R,): a token quantity added up per response; in fp64 and rounded once, so that a sum does not hang on the
        order of its terms.
        """
        total_R = torch.zeros(len(self.length_R), dtype=torch.float64, device=value_N.device)
        total_R = total_R.index_add(0, self.owner_N, value_N.double())
        return total_R.to(torch.promote_types(torch.float32, value_N.dtype))


@dataclass(frozen=True)
class _TrialTokens:
    """Two prompts and three responses of a few tokens: what a new model is tried on."""

    prompts: Ragged
    responses: Ragged


class _Network:
    """A model and the way it is computed.

    compute: "packed" or "padded", as chosen; why: the reason, for the run's record.
    """

    def __init__(self, model: Any, compute: Compute = "auto", chunk: int | None = None):
        """Raises HoldfastError when `compute` is "packed" and the model cannot; "auto" then takes the padded path and
        says why.
        """
        self.model: Any = model
        self.chunk = chunk
        self._root: Callable[[Callable[[], Any]], Any] | None = None  # see `divide`
        self._inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # under a peft wrapper
        self._config = self._inner.config.get_text_config()
        self.longest = longest_input(self._inner)  # tokens that its positions reach; None: no limit known
        embedding = self._inner.get_input_embeddings()
        if getattr(embedding, "padding_idx", None) is not None:
            # No padding is ever learned from here, and a token that doubles as padding (often the stop token) must
            # learn like any other.
            embedding.padding_idx = None
        quicken(self._inner)
        self.compute: Literal["packed", "padded"] = "padded"
        self.why = "asked for"
        if compute == "padded":
            return
        reason = self._cannot_pack()
        if reason is None:
            self.compute, self.why = "packed", "prompts computed once; agrees with the padded path on a trial"
        elif compute == "packed":
            raise HoldfastError(
                f"compute = 'packed' does not work for {type(self._inner).__name__}: {reason}; use 'auto' or 'padded'"
            )
        else:
            self.why = reason

    def divide(self) -> None:
        """Divide the weights among the run's processes, where it is to be sharded. What is computed stays the same."""
        self._root = here().shard(self.model)

    def _at_hand(self, compute: Callable[[], T]) -> T:
        """`compute`, which returns tensors, with the weights at hand."""
        return compute() if self._root is None else self._root(compute)

    def batch(self, tokens: TokenSource, groups: Groups) -> Packed | Padded:
        """The forward's input for prompt groups, on the model's device. Raises HoldfastError where a sequence is too
        long for the model.
        """
        made: Packed | Padded
        like = next(self.model.parameters())
        if self.compute == "packed":
            size = (
                getattr(self._config, "head_dim", None) or self._config.hidden_size // self._config.num_attention_heads
            )
            made = pack(tokens, groups, width=self._config.num_attention_heads * size, even=even(like))
        else:
            made = pad(tokens, groups, padding=padding_id(self._config))
        if self.longest is not None and made.longest > self.longest:
            raise HoldfastError(
                f"the longest prompt + response has {made.longest} tokens, {type(self._inner).__name__} reads at most "
                f"{self.longest}: set text.max_length = {self.longest} and text.too_long"
            )
        return made.to(like.device)

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(B * L, H): the last hidden state at every place."""
        backbone = self._inner.base_model
        if isinstance(batch, Packed):
            if self._inner.config._attn_implementation != NAME:
                raise HoldfastError(
                    f"a packed batch came to a model that is computed padded ({self.why}); give models that share batches "
                    "the same compute"
                )
            with attending(batch.plan):
                # The mask of ones says "nothing is padding, and do not guess sequences from position ids".
                out = backbone(
                    input_ids=batch.ids_BL,
                    attention_mask=torch.ones_like(batch.ids_BL),
                    position_ids=batch.position_BL,
                    use_cache=False,
                )
        else:
            assert isinstance(batch, Padded)
            out = backbone(input_ids=batch.ids_BL, attention_mask=batch.mask_BL, use_cache=False)
        return out.last_hidden_state.flatten(0, 1)

    def _trial(self, batch: Batch) -> torch.Tensor:
        """What the two paths must agree on."""
        raise NotImplementedError

    def _cannot_pack(self) -> str | None:
        """Switch the model to packed attention and try it; the reason, and the model as it was, if that fails."""
        inner = self._inner
        if getattr(inner.config, "is_encoder_decoder", False):
            return "an encoder-decoder has no single row to pack"
        if not inner._can_set_attn_implementation():
            return f"{type(inner).__name__} does not use transformers' attention interface"
        before, training = inner.config._attn_implementation, inner.training
        n = min(self._config.vocab_size, 97)
        prompts, responses = ([3, 5, 7, 2, 6], [4, 8]), ([5, 9, 3], [7, 2, 2, 8], [6])
        some = _TrialTokens(*(Ragged.of([[i % n for i in ids] for ids in lists]) for lists in (prompts, responses)))
        groups = [(0, [0, 1]), (1, [2])]
        device = next(inner.parameters()).device
        reason: str | None = None
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                inner.eval()
                plain = self._trial(pad(some, groups).to(device))
                with quiet():
                    inner.set_attn_implementation(NAME)
                packed = self._trial(pack(some, groups).to(device))
                limit = (
                    TRIAL_TOLERANCE.get(plain.dtype, 0.05)
                    if next(inner.parameters()).dtype in TRIAL_TOLERANCE
                    else 0.05
                )
                apart = float(((packed - plain).abs() / plain.abs().clamp(min=1)).max())
                if not apart <= limit:
                    reason = f"packed and padded differ by {apart:.2g} on a trial: tokens meet outside its attention"
                else:
                    inner.train()
                    self._trial(pack(some, groups).to(device))  # raises where training adds attention dropout
        except CannotPack as problem:
            reason = str(problem)
        except HoldfastError:
            raise
        except Exception as problem:  # a trial of unknown code: whatever goes wrong in it is the reason
            reason = f"the trial failed with {type(problem).__name__}: {str(problem)[:200]}"
        finally:
            inner.train(training)
        if reason is not None:
            with quiet():
                inner.set_attn_implementation(before)
        return reason


class Policy(_Network):
    """A causal language model as a policy: log-probabilities of responses under their prompts.

    model: an AutoModelForCausalLM, plain or wrapped by peft. chunk: tokens per chunk of the logits (default: a few MiB of
    them). keep: their softmax is kept for the backward, not made again. direct: a backward adds the head's gradient to the weight's
    `grad` itself, and the gradient of an embedding that is the same weight row by row: neither is ever a tensor of its own.
    """

    def __init__(
        self,
        model: Any,
        compute: Compute = "auto",
        chunk: int | None = None,
        keep: bool = False,
        direct: bool = False,
    ):
        self.keep, self.direct = keep, direct
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if getattr(inner, "get_output_embeddings", lambda: None)() is None:
            raise HoldfastError(
                f"a policy needs a causal language model; {type(inner).__name__} has no output head over the vocabulary"
            )
        self._form: tuple[float, float | None] | None = None
        super().__init__(model, compute, chunk)
        embedding, head = self._inner.get_input_embeddings(), self._inner.get_output_embeddings()
        if (
            direct
            and self.compute == "packed"
            and embedding.weight is head.weight
            and embedding.weight.device.type == "cpu"
        ):
            embedding.sparse = True  # the head's gradient, which is dense, is there before it

    def logps(self, batch: Batch, *, squares: bool = False, kl_from: Policy | None = None) -> Logps:
        """Log-probabilities of the response tokens. Differentiable. Packed: chunked head; padded: plain logits and
        log-softmax.

        squares, kl_from: with `squares_N`, and with `kl_N` from this reference policy, out of the same forward.
        """
        theirs = None
        if kl_from is not None:
            self._same_vocabulary(kl_from)
            with torch.no_grad():
                theirs = kl_from._logits(batch)
        token_N, squares_N, kl_N = self._at_hand(lambda: self._tokens(batch, squares, theirs))
        out = Logps(token_N, batch.owner_N, token_N, batch.length_R, squares_N, kl_N)
        return replace(out, sum_R=out.sums(token_N))

    def _tokens(
        self, batch: Batch, squares: bool, theirs: Callable[[slice], torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """token_N, squares_N and kl_N of `Logps`."""
        n = len(batch.target_N)
        squares_N = kl_N = None
        if isinstance(batch, Packed):
            hidden_NH = self._hidden(batch).index_select(0, batch.source_N)
            head = replace(self._head(), direct=self.direct)
            chunk = self.chunk or logprob.chunk_tokens(len(head.weight))
            token_N = token_logps(hidden_NH, head, batch.target_N, chunk, self.keep)
            if squares:
                squares_N = logprob.token_squares(lambda part: head.logits(hidden_NH[part]), n, chunk)
            if theirs is not None:
                kl_N = logprob.kl_from(theirs, hidden_NH, head, chunk)
        else:
            logp_NV = self._plain_logits(batch).log_softmax(-1)
            token_N = logp_NV.gather(1, batch.target_N[:, None])[:, 0]
            if squares:
                squares_N = (2 * logp_NV.detach()).logsumexp(-1)
            if theirs is not None:
                with torch.no_grad():
                    logq_NV = theirs(slice(0, n)).log_softmax(-1)
                kl_N = (logq_NV.exp() * (logq_NV - logp_NV)).sum(-1)
        return token_N, squares_N, kl_N

    @torch.no_grad()
    def hidden(self, batch: Batch) -> torch.Tensor:
        """(N, H): the last hidden state that predicts each response token, of its prompt and the tokens before it: what the output
        head reads. No gradient.
        """
        return self._at_hand(lambda: self._hidden(batch).index_select(0, batch.source_N))

    def _same_vocabulary(self, reference: Policy) -> int:
        vocab = [p.model.get_output_embeddings().weight.shape[0] for p in (self, reference)]
        if vocab[0] != vocab[1]:
            raise HoldfastError(f"KL needs one vocabulary: the policy has {vocab[0]} ids, the reference {vocab[1]}")
        return vocab[0]

    @torch.no_grad()
    def token_kl(self, batch: Batch, reference: Policy) -> torch.Tensor:
        """KL(policy || reference) in nats at each response token's prediction, (N,), over the whole vocabulary. No
        gradient.
        """
        vocabulary = self._same_vocabulary(reference)
        mine, theirs = self._logits(batch), reference._logits(batch)
        return logprob.token_kl(mine, theirs, len(batch.target_N), self.chunk or logprob.chunk_tokens(vocabulary))

    def _logits(self, batch: Batch) -> Callable[[slice], torch.Tensor]:
        if isinstance(batch, Packed):
            hidden_NH, weight, bias = self._at_hand(lambda: self._before_logits(batch))
            head = replace(self._head(), weight=weight, bias=bias)
            return lambda part: head.logits(hidden_NH[part])
        logits_NV = self._at_hand(lambda: self._plain_logits(batch))
        return lambda part: logits_NV[part]

    def _before_logits(self, batch: Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Hidden states, weight and bias of the head; of divided weights a copy, for they are at hand no longer than this."""
        hidden_NH, head = self._hidden(batch).index_select(0, batch.source_N), self._head()
        if self._root is None:
            return hidden_NH, head.weight, head.bias
        return hidden_NH, head.weight.clone(), None if head.bias is None else head.bias.clone()

    def _plain_logits(self, batch: Batch) -> torch.Tensor:
        assert isinstance(batch, Padded)
        logits = self.model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL, use_cache=False).logits
        logits = logits.flatten(0, 1).index_select(0, batch.source_N)
        return logits.to(torch.promote_types(torch.float32, logits.dtype))

    def _trial(self, batch: Batch) -> torch.Tensor:
        return self.logps(batch).token_N

    def _head(self) -> Head:
        """The output head as the config describes it. Raises CannotPack for one that is more than a linear layer,
        scale and softcap.
        """
        layer = self._inner.get_output_embeddings()
        if self._form is not None:
            return Head(layer.weight, layer.bias, *self._form)
        if not isinstance(layer, nn.Linear) or type(layer).forward not in (nn.Linear.forward, Linear.forward):
            raise CannotPack(f"its output head is a {type(layer).__name__}, not a plain linear layer")
        config, scale = self._config, 1.0
        kind = str(config.model_type)
        softcap = getattr(config, "final_logit_softcapping", None)
        unknown = {
            name: value
            for name, value in config.to_dict().items()
            if ("logit" in name or name == "lm_head_multiplier")
            and name not in ("final_logit_softcapping", "attn_logit_softcapping")
            and value not in (None, 1, 1.0, False, True)
        }
        for name, families, factor in (
            ("logits_scaling", ("granite", "minicpm3"), lambda x: 1 / x),
            ("logits_scaling", ("hyperclovax",), float),
            ("logit_scale", ("cohere",), float),
            ("lm_head_multiplier", ("falcon_h1",), float),
        ):
            if name in unknown and kind.startswith(families):
                scale = factor(float(unknown.pop(name)))
        if unknown:
            raise CannotPack(f"its config changes the logits in a way that is not known here: {unknown}")
        self._form = (scale, softcap)
        return Head(layer.weight, layer.bias, *self._form)


class RewardModel(_Network):
    """A one-label sequence-classification model: its score at a response's last token, found by length.

    `RewardModel.on` makes one from a causal language model as well. It may have several score heads on the one backbone
    (`scorer_on`): the score is then their mean, which is what an ordinary one-label model keeps of them.
    """

    def __init__(self, model: Any, compute: Compute = "auto", chunk: int | None = None):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        labels = getattr(inner.config, "num_labels", None)
        if "ForSequenceClassification" not in type(inner).__name__ or labels != 1:
            raise HoldfastError(
                f"a reward model has one label; this is {type(inner).__name__} with "
                f"{labels}. Start from a causal language model, or from a reward model's folder"
            )
        # Decoders have a head `score` over hidden states, plain or wrapped by peft; encoders pool first.
        self._score: nn.Module | None = getattr(inner, "score", None)
        super().__init__(model, compute, chunk)

    @property
    def heads(self) -> int:
        return int(getattr(self._score, "out_features", 1))

    @classmethod
    def on(
        cls, model: Any, tokenizer: Any = None, *, seed: int = 0, compute: Compute = "auto", chunk: int | None = None
    ) -> RewardModel:
        """A reward model on `model`: as it is, if it is one; on its backbone (taken over, not copied), if it is a
        causal language model.

        The fresh score head is small and drawn from `seed` alone. The config, and the tokenizer if given, get a padding
        id that ends no response, so that plain `transformers`, which looks for the last token that is not padding,
        reads the same score.
        """
        return cls(scorer_on(model, tokenizer, seed=seed), compute, chunk)

    def scores(self, batch: Batch) -> torch.Tensor:
        """(R,) fp32: the score at each response's last token. Differentiable."""
        return self._at_hand(lambda: self._ends(batch))

    def _ends(self, batch: Batch) -> torch.Tensor:
        if self._score is None:
            assert isinstance(batch, Padded)
            types_BL = torch.zeros_like(batch.ids_BL)
            types_BL.view(-1)[batch.place_N] = 1
            return self._whole(batch.ids_BL, batch.mask_BL, types_BL)
        return self._at(batch, batch.last_R)

    def head_scores(self, batch: Batch) -> torch.Tensor:
        """(R, H) fp32: every head's score. Differentiable."""
        if self.heads == 1:
            return self.scores(batch)[:, None]
        return self._at_hand(lambda: self._every(batch, batch.last_R))

    def save(self, tokenizer: Any, folder: str | Path) -> None:
        """Write an ordinary one-label folder with the mean of the heads, and beside it all heads in `heads.safetensors`.

        The mean of linear heads is a linear head.
        """
        many = self._score
        assert isinstance(many, nn.Linear)
        one = nn.Linear(many.in_features, 1, bias=many.bias is not None, device="meta")
        for name, parameter in many.named_parameters():
            setattr(one, name, nn.Parameter(parameter.detach().mean(0, keepdim=True)))
        self._inner.score = one
        try:
            save_model(self.model, tokenizer, folder)
        finally:
            self._inner.score = many
        heads = {name: parameter.detach().contiguous().cpu() for name, parameter in many.named_parameters()}
        save_file(heads, Path(folder) / HEADS, metadata={"format": "pt"})

    def load_heads(self, folder: str | Path) -> None:
        """Take the heads that `save` wrote, for the one of the folder's model."""
        path = Path(folder) / HEADS
        if not path.is_file():
            raise HoldfastError(f"{path} is missing: the folder does not hold all heads of the reward model")
        one, heads = self._score, load_file(path)
        assert isinstance(one, nn.Linear)
        many = nn.Linear(one.in_features, len(heads["weight"]), bias="bias" in heads, device="meta")
        for name, value in heads.items():
            setattr(many, name, nn.Parameter(value.to(one.weight)))
        self._score = self._inner.score = many

    def _whole(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, types_BL: torch.Tensor) -> torch.Tensor:
        """(B,) fp32: an encoder's score of sequences. types_BL: 0 in the prompt, 1 in the response, for models that tell them apart."""
        types = {"token_type_ids": types_BL} if getattr(self._config, "type_vocab_size", 0) > 1 else {}
        out = self.model(input_ids=ids_BL, attention_mask=mask_BL, **types).logits[:, 0]
        return out.to(torch.promote_types(torch.float32, out.dtype))

    def prefix_scores(self, batch: Batch) -> torch.Tensor:
        """(N,) fp32: the score were the response to end at each of its tokens; a token's contribution is the
        difference to the one before.
        """
        return self._at_hand(lambda: self._cut_short(batch) if self._score is None else self._at(batch, batch.place_N))

    def _cut_short(self, batch: Batch, budget: int = 8192) -> torch.Tensor:
        """An encoder has read the end when it reads the beginning: each beginning of a response is a sequence of its own, closed by the
        response's last token. One forward per token, `budget` tokens at a time.
        """
        assert isinstance(batch, Padded)
        length = batch.ids_BL.shape[1]
        row_N, column_N = batch.place_N // length, batch.place_N % length
        end_N = (batch.last_R % length)[batch.owner_N]
        close_N = torch.minimum(column_N + 1, end_N)
        column = torch.arange(length, device=batch.ids_BL.device)
        start_N = (end_N - batch.length_R[batch.owner_N] + 1)[:, None]
        scores = []
        for part in torch.arange(len(row_N), device=column.device).split(max(1, budget // length)):
            close = close_N[part, None]
            ids_BL = batch.ids_BL[row_N[part]]
            ids_BL = torch.where(column == close, ids_BL.gather(1, end_N[part, None]), ids_BL)
            mask_BL = (column <= close).to(batch.mask_BL.dtype)
            fill = torch.full_like(ids_BL, padding_id(self._config))
            types_BL = ((column >= start_N[part]) & (column <= close)).to(ids_BL.dtype)
            scores.append(self._whole(torch.where(mask_BL.bool(), ids_BL, fill), mask_BL, types_BL))
        return torch.cat(scores)

    def _at(self, batch: Batch, place: torch.Tensor) -> torch.Tensor:
        out = self._every(batch, place)
        return out[:, 0] if out.shape[1] == 1 else out.mean(1)

    def _every(self, batch: Batch, place: torch.Tensor) -> torch.Tensor:
        assert self._score is not None
        out = self._score(self._hidden(batch).index_select(0, place))
        return out.to(torch.promote_types(torch.float32, out.dtype))

    def _trial(self, batch: Batch) -> torch.Tensor:
        if self._score is None:
            raise CannotPack("an encoder reads one sequence at a time")
        return self._hidden(batch).index_select(0, batch.place_N)  # a fresh head is too small to see a difference by


def scorer_on(model: Any, tokenizer: Any = None, *, seed: int = 0, heads: int = 1) -> Any:
    """The one-label sequence classifier of `RewardModel.on`, not yet wrapped.

    heads: with more than one, as many score heads on the one backbone, each drawn from the seed; on a model that has a
    head already, around it.
    """
    if heads > 1:
        one = scorer_on(model, tokenizer, seed=seed)
        old = getattr(one, "score", None)
        if not isinstance(old, nn.Linear):
            raise HoldfastError(f"{type(one).__name__} has no plain score head to have {heads} of; take heads = 1")
        many = nn.Linear(old.in_features, heads, bias=old.bias is not None, device="meta")
        draw = torch.randn((heads, old.in_features), generator=torch.Generator().manual_seed(seed))
        around = old.weight.detach() if one is model else torch.zeros_like(old.weight)
        many.weight = nn.Parameter(around + (draw * 0.1 * old.in_features**-0.5).to(around))
        if old.bias is not None:
            many.bias = nn.Parameter(old.bias.detach().expand(heads).clone())
        one.score = many
        return one
    if "ForSequenceClassification" in type(model).__name__:
        return model
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_labels = 1
    config.get_text_config().pad_token_id = padding_id(config.get_text_config(), tokenizer)
    if tokenizer is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.get_text_config().pad_token_id)
    parameter = next(model.parameters())
    try:
        with torch.device("meta"), quiet():
            scorer: Any = AutoModelForSequenceClassification.from_config(config, dtype=parameter.dtype)
    except ValueError:
        raise HoldfastError(f"transformers has no sequence-classification model for {config.model_type!r}") from None
    head = getattr(scorer, "score", None)
    if not isinstance(head, nn.Linear) or not hasattr(scorer, model.base_model_prefix):
        raise HoldfastError(f"{type(scorer).__name__} has no plain score head on a causal backbone")
    setattr(scorer, scorer.base_model_prefix, model.base_model)
    generator = torch.Generator().manual_seed(seed)
    # Scores of a fresh head scatter by about 0.1 around 0, as hidden states come out of a norm: training starts
    # near ln 2.
    weight = torch.randn(head.weight.shape, generator=generator) * 0.1 * head.in_features**-0.5
    head.weight = nn.Parameter(weight.to(parameter.device, parameter.dtype))
    if head.bias is not None:
        head.bias = nn.Parameter(torch.zeros_like(head.bias, device=parameter.device))
    scorer.config._attn_implementation = model.config._attn_implementation
    scorer.train(model.training)
    return scorer


def longest_input(model: Any) -> int | None:
    """The most tokens that a model's positions reach, or None where it knows no limit."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for module in model.modules():
        # RoBERTa and its kin count positions from behind the padding id, and so have fewer than their config says.
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.num_embeddings - table.padding_idx - 1
    return most


def padding_id(config: Any, tokenizer: Any = None) -> int:
    """A token id to fill up with that ends no response.

    The tokenizer's or the config's own padding id, unless it is a stop token; else another special token; else an id
    beyond the tokenizer's; else, where every special token stops (GPT-2), the last id of the vocabulary.
    """
    eos = config.eos_token_id
    stops = set(eos if isinstance(eos, list | tuple) else [eos])
    if tokenizer is not None:
        stops.add(tokenizer.eos_token_id)
        wanted = [tokenizer.pad_token_id, config.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
        beyond = [len(tokenizer)] if len(tokenizer) < config.vocab_size and _names(tokenizer, len(tokenizer)) else []
        wanted += [*tokenizer.all_special_ids, *beyond]
    else:
        wanted = [config.pad_token_id, config.bos_token_id]
    last = config.vocab_size - 1 if tokenizer is None else min(len(tokenizer), config.vocab_size) - 1
    wanted += range(last, -1, -1)
    return next(int(i) for i in wanted if i is not None and 0 <= i < config.vocab_size and i not in stops)


def _names(tokenizer: Any, i: int) -> bool:
    return tokenizer.convert_ids_to_tokens(i) is not None


def load_base(
    source: str | Path,
    *,
    hub: bool = False,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    dropout: bool = False,
    seed: int = 0,
    keep_adapter: bool = False,
) -> tuple[Any, Any]:
    """(model, tokenizer) from a `transformers` folder, a Holdfast run folder (its `model`), or, with `hub`, a hub name.

    A folder of a sequence-classification model gives that; one of an encoder (BERT and its kin) a classifier with one
    label, whose head, where the folder has none, comes from `seed` (`fresh_weights` names its tensors); all else a
    causal language model. An adapter's folder gives its base with the adapter's weights added in, or, with
    `keep_adapter`, under the adapter. Weights are read from safetensors only, code from nowhere. dropout: keep the
    dropout that the config names; by default it is off, for a log-ratio to the reference is else not zero at step 0
    (the config on disk keeps its values). Raises HoldfastError
    naming what is missing.
    """
    where = str(source)
    if not hub:
        folder = Path(source)
        if not folder.is_dir():
            raise HoldfastError(
                f"model folder {where} does not exist; name a transformers folder or a Holdfast run, or set model.hub"
            )
        folder = model_folder(folder)
        if (folder / adapters.CONFIG).exists() and not (folder / "config.json").exists():
            return _under_adapter(folder, keep_adapter, dtype, dropout)
        if not (folder / "config.json").exists():
            raise HoldfastError(
                f"model folder {where} has no config.json: neither a transformers folder nor a finished Holdfast run"
            )
        if not any(folder.glob("*.safetensors")):
            pickles = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
            if pickles:
                raise HoldfastError(
                    f"model folder {where} has its weights in {pickles[0]}, a pickle, which can run code: convert them "
                    "to safetensors (model.save_pretrained does) in a place you trust"
                )
            raise HoldfastError(f"model folder {where} has no *.safetensors")
        where = str(folder)
    common: dict[str, Any] = {"revision": revision or "main", "local_files_only": not hub, "trust_remote_code": False}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where, **common)
            scores = any("ForSequenceClassification" in name for name in config.architectures or ())
            encoder = not scores and _is_encoder(config)
            if encoder:
                config.num_labels = 1
            auto: Any = AutoModelForSequenceClassification if scores or encoder else AutoModelForCausalLM
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "head"))
                model, info = auto.from_pretrained(
                    where, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **common
                )
        except Exception as problem:
            raise HoldfastError(f"model {where} does not load: {_first_line(problem)}") from None
        lost = sorted(info["missing_keys"]) or sorted(str(key[0]) for key in info["mismatched_keys"])
        if encoder:  # what stands on top of the backbone was not in its folder
            model.holdfast_fresh = [n for n in lost if not n.startswith(f"{model.base_model_prefix}.") or "pooler" in n]
            lost = [n for n in lost if n not in model.holdfast_fresh]
        if lost:
            raise HoldfastError(
                f"model {where} lacks {len(lost)} weights that {type(model).__name__} needs (first {lost[0]}); it is "
                "incomplete, or another model"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **common)
        except Exception as problem:
            raise HoldfastError(f"the tokenizer of {where} does not load: {_first_line(problem)}") from None
    return _without_dropout(model, dropout), _opened(tokenizer, where)


def _opened(tokenizer: Any, where: str) -> Any:
    if not len(tokenizer):
        raise HoldfastError(f"model folder {where} has no tokenizer; save it there with tokenizer.save_pretrained")
    for how in ("is_local", "local_files_only"):  # how it was opened is no part of what is saved again
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def _without_dropout(model: Any, dropout: bool) -> Any:
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("attention_dropout", "hidden_dropout", "activation_dropout", "dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    return model


def fresh_weights(model: Any) -> list[str]:
    """The parameters that no folder held: an encoder's head, made when it was loaded."""
    return list(getattr(model, "holdfast_fresh", ()))


def base_digest(model: Any) -> str:
    """The weights digest of what was read from the base's folder."""
    fresh = set(fresh_weights(model))
    return weights_digest({n: t for n, t in model.state_dict().items() if n not in fresh} if fresh else model)


def reads_pairs(model: Any) -> bool:
    """Whether a model is an encoder: it reads prompt and response as a pair, both at once."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "ForSequenceClassification" in type(inner).__name__ and getattr(inner, "score", None) is None


def model_folder(folder: Path) -> Path:
    """Where a model lies: the folder itself, or the `model` of a run's folder."""

    def there(at: Path) -> bool:
        return (at / "config.json").exists() or (at / adapters.CONFIG).exists()

    return folder / "model" if there(folder / "model") and not there(folder) else folder


def _is_encoder(config: Any) -> bool:
    """Whether a folder holds a model that reads both ways: one that fills in masked words and is not set up to write."""
    writes = any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in config.architectures or ())
    return (
        type(config) in MODEL_FOR_MASKED_LM_MAPPING
        and type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        and not (writes or config.is_encoder_decoder or getattr(config, "is_decoder", False))
    )


def _under_adapter(folder: Path, keep: bool, dtype: torch.dtype, dropout: bool) -> tuple[Any, Any]:
    """The model of an adapter folder: the base that it names, with the adapter on it or added in."""
    base, revision, task = adapters.adapter_base(folder)
    hub = not Path(base).is_dir() and not Path(base).is_absolute()
    model, tokenizer = load_base(base, hub=hub, revision=revision, dtype=dtype, dropout=dropout)
    digest = base_digest(model)
    with quiet():
        if (folder / "tokenizer_config.json").exists():
            tokenizer = _opened(AutoTokenizer.from_pretrained(folder, local_files_only=True), str(folder))
        if task == "SEQ_CLS":
            model = scorer_on(model, tokenizer)
        model = adapters.load_adapter(model, folder, digest)
        # Merged it is an ordinary model again, and peft has left it frozen.
        return (model if keep else model.merge_and_unload().requires_grad_(True)), tokenizer


def save_model(model: Any, tokenizer: Any, folder: str | Path, *, write: Callable[[Path], None] | None = None) -> None:
    """Write an ordinary `transformers` folder (safetensors, config, generation config, tokenizer): complete, or not
    there at all.

    A folder of that name is replaced. write: writes the weights in another way than model.save_pretrained.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with quiet():
        (write or model.save_pretrained)(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    sync_tree(temporary)
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(aside)
        temporary.rename(folder)
        shutil.rmtree(aside)
    else:
        temporary.rename(folder)
    sync_path(folder.parent)


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).strip() or 'no reason given').splitlines()[0]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings (a newly made head is announced by us, in the run's record);
    errors still raise.
    """
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
