"""Balance of learned routers on words of real text: what reproduce_routers.py trains, one seed of each."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from reproduce_routers import train

import harness

CAPABILITY = "Sparse experts"


@lru_cache
def run(table: str, name: str) -> dict[str, Any]:
    return train(table, name, 0)


@harness.goal(CAPABILITY, "balance without a loss on real text, MaxVio, E 32, k 4", at_most=0.1, unit="", slow=True)
def loss_free_violation() -> harness.Figure:
    found, free = run("bias", "bias, 0.01"), run("bias", "no balancing")
    return harness.Figure(found["most"] - 1, f"{free['most'] - 1:.2f} without balancing")


@harness.goal(CAPABILITY, "CV of importance, unbalanced over balanced by losses (0.1, 0.1)", at_least=3.0, slow=True)
def importance_loss_balances() -> harness.Figure:
    free, found = run("losses", "(0, 0)"), run("losses", "(0.1, 0.1)")
    detail = f"{free['cv_importance']:.2f} and {found['cv_importance']:.2f}; published 3.04 and 0.06 with 256 experts"
    return harness.Figure(free["cv_importance"] / found["cv_importance"], detail)


@harness.goal(CAPABILITY, "fullest expert over the mean by losses (0.1, 0.1), real text, E 32, k 4", slow=True)
def fullest_expert() -> harness.Figure:
    free, found = run("losses", "(0, 0)"), run("losses", "(0.1, 0.1)")
    return harness.Figure(
        found["most"], f"{free['most']:.2f} without losses; published 1.14 and 17.80 with 256 experts"
    )


if __name__ == "__main__":
    harness.main()
