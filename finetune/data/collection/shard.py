"""One of several equal parts of a collection, decided by the pictures' keys."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from finetune.errors import InputError

MOST_SHARDS = 1_000_000
_FORM = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, counted from 1.

    Example:
        >>> from finetune.data.collection.shard import Shard
        >>> [Shard(number, 3).owns("cats/1.jpg") for number in (1, 2, 3)]
        [False, True, False]
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_SHARDS:
            raise InputError(f"a collection has 1 to {MOST_SHARDS:,} shards, not {self.count}")
        if not 1 <= self.number <= self.count:
            raise InputError(
                f"there is no shard {self.number}/{self.count}: shards are counted from 1, so give 1/{self.count} to "
                f"{self.count}/{self.count}"
            )

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """The shard of a text such as "3/8". InputError for any other."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise InputError(f"--shard is number/count, such as 3/8 for the third of 8 shards, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def owns(self, key: str) -> bool:
        """Whether the picture with this key is in the shard. It depends on the key alone, on every machine."""
        if self.count == 1:
            return True
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
