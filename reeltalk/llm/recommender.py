"""The LLM recommender: reads a user's prompt, and teaches the sequential model while it learns itself.

Paper: LSVCR (arXiv 2403.13574). Eq 9 `preferences`; eq 13 `target_loss`; LLM(x) of eq 1, 2 and 14 in stage 1
    `text_vectors`. Instruction and target go through the LLM as one sequence: no token sees a later one, so the hidden
    state at the instruction's last token is that of the instruction alone.
Differs from the paper: the target ends with the tokenizer's end token, so that generation ends too; eq 13 is divided by
    the target tokens of the whole batch, not summed in each instance, so that long targets do not outweigh the rest.
Checked against: slow float64 loops written from the equations (tests/test_llm.py).

Shape suffixes: B prompts, T tokens, E width of the LLM, D width of a preference, U texts, N target tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reeltalk.artifacts import write_json
from reeltalk.data.ragged import Ints
from reeltalk.errors import ArtifactError
from reeltalk.llm.causal_lm import LLMSettings, add_lora, both_ways, load_causal_lm, logits
from reeltalk.llm.prompts import Prompt, TokenBatch, end_token
from reeltalk.llm.sharding import layers_run_again, shard_layers
from reeltalk.losses import widened
from reeltalk.text.batches import TEXT_STEP, Again, by_length, distinct_vectors, num_kept, pad_right, run_batches
from reeltalk.text.checkpoint import located
from reeltalk.weights import save_weights

RECOMMENDER = "recommender.json"
LORA, LORA_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # where peft itself looks for them
PREFERENCE = "preference_adapter.safetensors"
_PEFT = "base_model."  # what the keys begin with there
LOGITS_AT_ONCE = 1 << 25  # 128 MiB in float32
_MEASURED = 64  # tokens of the row that tells what one needs


class LLMRecommender(nn.Module):
    """A causal LM with LoRA on every linear layer but its head, and a linear map from its width to a preference's.

    Only LoRA and the map are trained. Padding may stand on either side of a row and changes nothing.
    """

    def __init__(self, settings: LLMSettings, *, dim: int, device: str = "auto", will_be_sharded: bool = False) -> None:
        """Load the LLM and add new LoRA layers. Raises ConfigError where it cannot be loaded.

        With `will_be_sharded` the LLM is on a CPU until `shard` and whoever moves modules bring it to the device.
        """
        super().__init__()
        loaded = load_causal_lm(settings, device=device, stays_on_cpu=will_be_sharded)
        # as it was found here: another machine would choose another precision
        precision = "bf16" if loaded.model.dtype == torch.bfloat16 else "float32"
        self.settings = settings.model_copy(update={"name": located(settings.name), "precision": precision})
        self.weights = loaded.weights
        self.max_tokens = loaded.max_tokens
        self.is_made_causal = loaded.is_made_causal
        self.tokenizer = loaded.tokenizer
        self.width: int = loaded.model.config.get_text_config().hidden_size
        self.lora: Any = add_lora(loaded.model, settings)
        self.preference_adapter = nn.Linear(self.width, dim, device=loaded.device)
        self._again: Again | None = None

    @property
    def llm(self) -> Any:
        """The causal LM, its linear layers wrapped by LoRA."""
        return self.lora.model

    @property
    def device(self) -> torch.device:
        return self.preference_adapter.weight.device

    def shard(self) -> None:
        """Divide the LLM's layers over the processes, which then must read at the same times; raises as `shard_layers`.

        The vectors and losses are what they were. Of LoRA and the map every process has all.
        """
        shard_layers(self.llm, self.device)
        self._again = partial(layers_run_again, self.llm)

    def hidden_states(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The last hidden state at every token: [B, T, E]; at padding, which is on the right, it means nothing.

        A causal LLM needs no mask (True at tokens): no token sees the padding behind it, and without a mask attention
        takes its fastest way.
        """
        read_BT = ids_BT if len(ids_BT) else F.pad(ids_BT, (0, 0, 0, 1))  # models do not take a batch without rows
        with self._autocast():
            result = self.llm.base_model(input_ids=read_BT, attention_mask=mask_BT, use_cache=False)
        hidden_BTE: Tensor = result.last_hidden_state
        return hidden_BTE[: len(ids_BT)]

    def bytes_a_token(self) -> float:
        """What the backward pass needs of a token, as measured on a short row; not of an LLM that is divided."""
        ids_1T = torch.zeros(1, min(_MEASURED, self.max_tokens), dtype=torch.long, device=self.device)
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.parameters()}
        sizes: dict[int, int] = {}
        kept: list[Tensor] = []  # else a place may be given twice

        def keep(saved: Tensor) -> Tensor:
            kept.append(saved)
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),  # its dropout draws from no step's randomness
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
        ):
            self.hidden_states(ids_1T)
        return sum(size for place, size in sizes.items() if place not in weights) / ids_1T.numel()

    def preferences(self, hidden_BTE: Tensor, batch: TokenBatch) -> Tensor:
        """Eq 9: the hidden state of the instruction's last token, through the linear map. [B, D]"""
        row_B = torch.arange(len(hidden_BTE), device=hidden_BTE.device)
        last_BE = hidden_BTE[row_B, batch.last_B]
        preference_BD: Tensor = self.preference_adapter(last_BE.to(self.preference_adapter.weight.dtype))
        return preference_BD

    def target_loss(self, hidden_BTE: Tensor, batch: TokenBatch) -> tuple[Tensor, int]:
        """Eq 13: -log P of each target token given what stands before it, as a sum, and the number of tokens.

        Logits are made at these tokens only, and no more than `LOGITS_AT_ONCE` of them exist at a time.
        """
        is_target_BT = batch.is_target_BT[:, 1:]
        before_NE, target_N = hidden_BTE[:, :-1][is_target_BT], batch.ids_BT[:, 1:][is_target_BT]
        rows = max(1, LOGITS_AT_ONCE // self.llm.config.get_text_config().vocab_size)
        if len(target_N) <= rows:
            return self._surprise(before_NE, target_N), len(target_N)
        blocks = zip(torch.split(before_NE, rows), torch.split(target_N, rows), strict=True)
        losses = [checkpoint(self._surprise, *block, use_reentrant=False) for block in blocks]
        return torch.stack(losses).sum(), len(target_N)

    def read(
        self, prompts: Sequence[Prompt], *, tokens_per_batch: int, tokens_kept: int = 0, with_targets: bool = True
    ) -> tuple[Tensor, Tensor, int]:
        """Eq 9 and 13 of any number of prompts: preferences [B, D], the loss in sum, the number of target tokens.

        They go through the LLM in order of length, about `tokens_per_batch` tokens at a time. Of the first batches, up
        to `tokens_kept` tokens, what the backward pass needs is kept; of the others nothing but the results, and the
        backward pass runs them again. So memory does not grow with the prompts, and nothing depends on how they are
        divided.
        """
        lengths = [len(prompt.ids) for prompt in prompts]
        batches = by_length(lengths, tokens_per_batch=tokens_per_batch)

        def run(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            batch = TokenBatch.of([prompts[row] for row in rows], max_tokens=self.max_tokens).to(self.device)
            hidden_BTE = self.hidden_states(batch.ids_BT)
            preference_BD = self.preferences(hidden_BTE, batch)
            loss, count = self.target_loss(hidden_BTE, batch) if with_targets else (preference_BD.new_zeros(()), 0)
            return preference_BD, loss, torch.tensor(count)

        found = run_batches(
            run,
            batches,
            num_kept=num_kept(batches, lengths, tokens_kept),
            place=self.preference_adapter.weight,
            again=self._again,
        )
        preference_BD, loss, count = (list(each) for each in zip(*found, strict=True))
        back = torch.from_numpy(np.argsort([row for batch in batches for row in batch])).to(self.device)
        return F.embedding(back, torch.cat(preference_BD)), torch.stack(loss).sum(), int(torch.stack(count).sum())

    def text_vectors(
        self, ids: Sequence[Sequence[int] | Ints], *, tokens_per_batch: int, tokens_kept: int = 0
    ) -> Tensor:
        """LLM(x) of stage 1: the mean of the last hidden states over a text's tokens, [texts, E], with gradient.

        A model of the BERT family, causal where it reads prompts, reads texts both ways, as `load_encoder` has it.
        Texts of the same tokens go through the LLM once, batched as in `read`. A text without tokens gives zeros. The
        ids are those of `text.encoder.tokenize`.
        """
        return distinct_vectors(
            self._means,
            ids,
            width=self.width,
            tokens_per_batch=tokens_per_batch,
            tokens_kept=tokens_kept,
            place=self.preference_adapter.weight,
            again=self._again,
        )

    def _means(self, rows: Sequence[Ints]) -> Tensor:
        padded = pad_right(rows, multiple=TEXT_STEP, max_tokens=self.max_tokens)
        ids_BT, mask_BT = (tensor.to(self.device) for tensor in padded)
        if self.is_made_causal:
            with both_ways(self.llm):
                hidden_BTE = self.hidden_states(ids_BT, None if mask_BT.all() else mask_BT)
        else:
            hidden_BTE = self.hidden_states(ids_BT)
        return (widened(hidden_BTE) * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64) -> str:
        """What the LLM writes after the instruction, taking the likeliest token each time."""
        ids_1T = torch.from_numpy(prompt.ids[None, : prompt.instruction_length]).to(self.device)
        was_training = self.training
        self.eval()
        try:
            with self._autocast():
                written = self.llm.generate(
                    input_ids=ids_1T,
                    attention_mask=torch.ones_like(ids_1T),
                    max_new_tokens=min(max_new_tokens, self.max_tokens - ids_1T.shape[1]),
                    eos_token_id=end_token(self.tokenizer),
                    pad_token_id=0,
                    do_sample=False,
                    use_cache=True,
                )
        finally:
            self.train(was_training)
        return str(self.tokenizer.decode(written[0, ids_1T.shape[1] :], skip_special_tokens=True)).strip()

    def save(self, folder: Path) -> None:
        """Write LoRA as peft does, the linear map, and what they belong to; not the LLM itself."""
        from peft import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        lora = get_peft_model_state_dict(self.lora, save_embedding_layers=False)
        save_weights({f"{_PEFT}{key}": value for key, value in lora.items()}, folder / LORA)
        config = self.lora.peft_config["default"].to_dict()
        write_json(folder / LORA_CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()})
        save_weights(self.preference_adapter.state_dict(), folder / PREFERENCE)
        facts = {"dim": self.preference_adapter.out_features, "weights": self.weights}
        write_json(folder / RECOMMENDER, {"settings": self.settings.model_dump(), **facts})

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> Self:
        """The recommender that `save` wrote, in eval mode.

        Raises ArtifactError where the folder lacks a file, or the LLM is not the one it was trained with.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        try:
            saved = json.loads((folder / RECOMMENDER).read_text())
            lora = {key.removeprefix(_PEFT): value for key, value in load_file(folder / LORA).items()}
            preference = load_file(folder / PREFERENCE)
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} holds no LLM recommender that can be read ({error})") from error
        recommender = cls(LLMSettings.model_validate(saved["settings"]), dim=saved["dim"], device=device)
        name = recommender.settings.name
        if recommender.weights != saved["weights"]:
            raise ArtifactError(f"{folder} was trained with other weights of {name!r} than those that are there now")
        fresh = get_peft_model_state_dict(recommender.lora, save_embedding_layers=False)
        if _shapes(lora) != _shapes(fresh):
            raise ArtifactError(f"{folder / LORA} does not fit the layers of {name!r}; align again")
        set_peft_model_state_dict(recommender.lora, lora)
        recommender.preference_adapter.load_state_dict(preference)
        return recommender.eval()

    def _surprise(self, hidden_NE: Tensor, target_N: Tensor) -> Tensor:
        """-log P of the tokens, in sum."""
        with self._autocast():
            logits_NV = logits(self.llm, hidden_NE)
        return F.cross_entropy(widened(logits_NV), target_N, reduction="sum")

    def _autocast(self) -> torch.autocast:
        """LoRA of a bf16 model, whose weights are float32, multiplies in bf16 too; that of any other never does."""
        is_half = self.llm.get_input_embeddings().weight.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_half)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}
