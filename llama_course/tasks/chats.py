"An evaluation that asks as a chat does: each prompt is a user's message, each answer the model's."

from typing import Any

from llama_course.support.errors import UserError


class ChatTokenizer:
    "A tokenizer whose texts that begin with BOS are conversations, by the model's chat template."

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{tokenizer.path} has no chat template: leave out --chat.")
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        "The ids of the text alone; with `bos`, of a conversation up to where the model answers it."
        if not bos:
            return self.tokenizer.encode(text, eos=eos)
        return self.tokenizer.encode_chat([{"role": "user", "content": text}])
