"""The mock source's text: one tuple of tokens for the whole process, and where in it an answer starts.

Rule 1: nothing is made per stream. A stream is a position in this tuple; a batch is a slice of it.
Rule 2: the same prompt and seed start at the same sentence, in every process and on every day (hence crc32
        and not ``hash()``, which Python seeds anew for each process).
"""

from __future__ import annotations

import re
import zlib
from typing import Final

_TEXT: Final = """
A model writes one token at a time, and a reader takes them one at a time. Between the two lies a row of
buffers, and each of them will gladly keep what the next one cannot take. That is kind of them, and it is
also the trouble. Water behind a closed gate does not stop rising because nobody looks at it. A queue
without a bound is a promise to run out of memory later, at the worst possible moment. So the first
question to ask of any stream is not how fast it can go, but who tells it to wait. The answer should be a
single word that travels all the way back to the source. Call it demand. When the reader is ready it asks
for more, and only then is more produced. When the reader pauses, nobody asks, and nothing is made that
would have to be stored. This costs less than it seems, because waiting is the cheapest thing that a
computer can do. A café with one barista understands it well: no order, no cup. A river with many locks
understands it too, for each lock opens only when the one below has room. The naïve design looks simpler
at first, since it writes whatever it has and hopes for the best. Hope, however, is not measured in bytes.
The kernel takes four megabytes without a word, and every one of them is work that somebody may never
read. If the reader leaves after three words, the rest was made for nothing. Electricity was spent on it,
and so was someone's turn in the queue. A good server notices that the reader has gone, and stops the
source before the next token is even begun. A good server also notices the reader who stays but does not
read. It waits for a while, politely, and then it closes the door and writes down why. One slow reader
must never become the problem of a hundred fast ones. Each stream has its own small bound, and the sum of
small bounds is a number that an operator can plan with. Numbers of this kind are worth more than
adjectives. Say how many bytes may wait, where they wait, and what happens when one more arrives. Then
measure it from outside, with a reader that takes nothing at all, and see whether the claim survives. If
it does not, the claim was a wish. If it does, write the figure into the manual, next to the command that
shows it. Fairness is the other half of the work. A source that never pauses can hold the loop for itself,
and the others see nothing but silence. Therefore even an eager source gives way after a tenth of a
millisecond, which nobody will ever notice. The first token matters most, because a person is looking at
an empty screen. After that the rhythm matters: steady beats quick, as every musician knows ♪ and every
commuter learns. An ending should be clear as well. Either the answer is whole and says so, or it was cut
and says that instead. A cut that looks like an ending is the worst of both, since the reader goes away
content with half a sentence. So the last thing sent is a small mark, and only a complete answer carries
it. Everything else is detail, though details are where most of the time goes. Read the code from the gate
outwards, and it will make sense in an afternoon. Change one bound, run the experiment again, and watch
the curve move. That is how one comes to trust a machine: not by being told, but by asking it to wait, and
seeing it wait.
"""

_PIECE: Final = re.compile(r" ?[^\W_]+(?:'\w+)?|[^\w\s]")

TOKENS: Final[tuple[str, ...]] = tuple(_PIECE.findall(" " + " ".join(_TEXT.split())))
"""The text, token by token: words with the space before them, and punctuation."""

LARGEST_BATCH: Final = 4096
"""Tokens that one batch may hold."""

LOOP: Final[tuple[str, ...]] = TOKENS * (2 + LARGEST_BATCH // len(TOKENS))
"""The text over and over: every batch that starts in the first round is one slice of it."""

_STARTS: Final = (0, *(at + 1 for at, token in enumerate(TOKENS[:-1]) if token == "."))


def start(prompt: str, seed: int | str) -> int:
    """The position in ``TOKENS`` at which the answer to this prompt starts: always a sentence's start."""
    return _STARTS[zlib.crc32(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass")) % len(_STARTS)]
