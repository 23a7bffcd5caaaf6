"""What the values in a checkpoint's section `loop` are, see `Descent.state_dict` and `Recorder`."""

from __future__ import annotations

from collections.abc import Mapping

from thalweg.records.kinds import Kind, anything, count, flag, listing, number, optional, record, table, text, whole

_WINDOW: Mapping[str, Kind] = {
    **dict.fromkeys(("best", "sum", "weight"), number),
    **dict.fromkeys(("losses", "norms"), listing(number)),
    **dict.fromkeys(("expected", "start"), optional(number)),
    **dict.fromkeys(("constant",), optional(number)),
    "top_rate": number,
    **dict.fromkeys(("step", "seen"), count),
    **dict.fromkeys(("stood_out", "norm_stood_out"), flag),
    **dict.fromkeys(("recent", "by_parameter"), listing(listing(number))),
    "trend": record({"blocks": listing(listing(number)), "length": count, "open": listing(number)}),
    "first_by_parameter": optional(listing(number)),
    "weights": listing(optional(listing(number))),
    "ratios": listing(lambda pair: isinstance(pair, list) and len(pair) == 2),
    "spikes": listing(whole),
    **dict.fromkeys(("upset", "lost_terms"), optional(listing(anything))),
    **dict.fromkeys(("reaches", "lengths", "validations"), listing(listing(anything))),
    "fixed_answers": listing(number),
    "rate": number,
    "rose_at": count,
    "rests_since": optional(count),
    "first": optional(number),
    "first_losses": listing(number),
    "alive_at": count,
    "began_trained": flag,
}
LOOP_KINDS: Mapping[str, Kind] = {
    "step": count,
    "batches": record({"epoch": count, "within": count, "begun": flag}),
    "schedule": table(anything),
    **dict.fromkeys(("accumulate", "repeated", "tried"), count),
    "scale": record({"value": number, "good": count}),
    "monitor": record(
        {
            "window": record(_WINDOW),
            "attempts": count,
            **dict.fromkeys(("failed_at", "undone_at"), optional(number)),
            **dict.fromkeys(("raises", "recovering", "early_looks"), count),
            **dict.fromkeys(("noted_at", "restarted_at", "asked_at"), table(whole)),
            "trying": flag,
            "pending": optional(table(anything)),
            "causes": table(record({"above": listing(whole)})),
            "dismissed": listing(text),
        }
    ),
    "cures": record(
        {
            **dict.fromkeys(("rate_factor", "decay_factor"), number),
            **dict.fromkeys(("clip_norm", "ema"), optional(number)),
            "accumulate": count,
            **dict.fromkeys(("warmup", "anneal"), optional(listing(number))),
        }
    ),
    **dict.fromkeys(
        ("left_out", "left_out_together"), listing(lambda position: listing(count)(position) and len(position) == 2)
    ),
    "left_out_examples": listing(count),
    "leading": optional(record({"value": number, "step": count}, ("value", "step"))),
    "skipped_in_row": count,
    "stale": count,
    "start": table(number),
    "last": table(number),
    "moving": listing(text),
    "diagnoses": listing(table(anything)),
    "differs": flag,
}
BEST_KINDS: Mapping[str, Kind] = {"value": number, "step": count, "figures": table(number), "averaged": flag}
STATED = ("value", "step", "figures", "averaged")
"""What is said of the weights that validated best, all of which is there."""
SNAPSHOT_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("model", "optimizer", "loss"), table(anything)),
    "objects": table(record({"same": flag})),
    "loop": record(LOOP_KINDS),
}
"""What the state that a rollback goes back to is made of."""
