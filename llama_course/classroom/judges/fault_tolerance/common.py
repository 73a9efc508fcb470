"What the judges of this chapter's exercises share."

import hashlib


def _numbers(seed):
    "random(n): a number below n, the same on every machine."
    state = [seed]

    def random(n):
        state[0] = int.from_bytes(hashlib.sha256(str(state[0]).encode()).digest()[:8], "big")
        return state[0] % n

    return random
