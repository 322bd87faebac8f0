"""A model on this machine as a chat model: it replies to conversations by the sampler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from melete.rewards.endpoint import ChatModel, Conversation
from melete.rewards.errors import GradingError
from melete.sampling.keys import rollout_key
from melete.sampling.protocol import Sampler
from melete.text.chat import decode_completion, prompt_tokens
from melete.types import SampleRequest, SamplingSettings


class LocalChatModel(ChatModel):
    """Replies of a local model; a reply is a function of its conversation, the number of the call, seed and weights."""

    def __init__(
        self, sampler: Sampler, tokenizer: PreTrainedTokenizerBase, settings: SamplingSettings, *, seed: int = 0
    ) -> None:
        self.sampler, self.tokenizer, self.settings, self.seed = sampler, tokenizer, settings, seed

    def replies(self, conversations: Sequence[Conversation]) -> list[str | GradingError]:
        """A reply to each conversation; one that was cut at the limit is a failure, for its verdict comes last."""
        requests = [self._request(conversation) for conversation in conversations]
        written = self.sampler.sample(requests, self.settings) if requests else []
        replies: list[str | GradingError] = []
        for (completion,) in written:
            if completion.finish_reason == "length":
                replies.append(GradingError(f"the reply was cut off at {self.settings.max_new_tokens} tokens"))
            else:
                replies.append(decode_completion(self.tokenizer, completion.tokens))
        return replies

    def _request(self, conversation: Conversation) -> SampleRequest:
        messages, call = conversation
        text = json.dumps([(message.role, message.content) for message in messages])
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        return SampleRequest(prompt_tokens(self.tokenizer, messages), (rollout_key(self.seed, "reply", digest, call),))
