"What the judge knows of `carbon_bill`. Spoilers ahead."

import random

from llama_course.classroom.exercise import Exercise

carbon_bill = Exercise(
    "carbon_bill",
    chapter="19_planner",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    factor=84.0,
    points={"values": 6, "laws": 4},
    hints=(
        "Tokens divided by the speed of one GPU are GPU-seconds. The number of GPUs decides "
        "how long it takes, not how much is used.",
        "MWh = GPU-hours * watts * PUE / 10⁶. The PUE is what the building adds: it "
        "multiplies, once.",
        "Tonnes = MWh * kg a kWh, without another factor: a thousand kWh to the MWh, a "
        "thousand kg to the tonne. Months: hours / 24 / 30.44.",
    ),
)


@carbon_bill.cases
def cases_of_carbon_bill(seed):
    draw = random.Random(seed).uniform
    for _ in range(6):
        gpus, watts = int(draw(8, 4096)), draw(250, 700)
        yield draw(2e11, 2e12), draw(100, 4000), gpus, watts, draw(1.05, 1.6), draw(0.05, 0.8)


@carbon_bill.reference
def bill(tokens, speed, gpus, watts, pue, intensity):
    hours = tokens / speed / 3600
    mwh = hours * watts * pue / 1e6
    return {
        "gpu_hours": hours,
        "mwh": mwh,
        "tco2e": mwh * intensity,
        "months": hours / gpus / 24 / 30.44,
    }


carbon_bill.right(bill)


@carbon_bill.right
def in_joules(tokens, speed, gpus, watts, pue, intensity):
    joules = tokens / speed * watts * pue
    seconds = tokens / (speed * gpus)
    return {
        "gpu_hours": seconds * gpus / 3600,
        "mwh": joules / 3.6e9,
        "tco2e": joules / 3.6e6 * intensity / 1000,
        "months": seconds / 86400 / 30.44,
    }


@carbon_bill.invariant("65B: 1,022,362 GPU-hours are 449.8 MWh and 173.2 t (Table 15)")
def carbon_of_65b(seen):
    value = seen(1.4e12, 1.4e12 / 1_022_362 / 3600, 2048, 400.0, 1.1, 0.385).value
    return abs(value["mwh"] - 449.84) < 0.01 and abs(value["tco2e"] - 173.19) < 0.01


@carbon_bill.invariant("2,638 MWh of 2,048 GPUs are 4.0 months, whatever the paper says")
def carbon_of_the_table(seen):
    hours = 2638e6 / 400 / 1.1
    return abs(seen(hours * 3600, 1.0, 2048, 400.0, 1.1, 0.385).value["months"] - 4.01) < 0.01


@carbon_bill.mistake("the PUE is forgotten", hint=2)
def the_pue_is_forgotten(tokens, speed, gpus, watts, pue, intensity):
    "The building takes its share: multiply by the PUE."
    return bill(tokens, speed, gpus, watts, 1.0, intensity)


@carbon_bill.mistake("divided by the PUE", hint=2)
def divided_by_the_pue(tokens, speed, gpus, watts, pue, intensity):
    "The building needs more than its GPUs, not less."
    return bill(tokens, speed, gpus, watts, 1 / pue, intensity)


@carbon_bill.mistake("the PUE twice", hint=2)
def the_pue_twice(tokens, speed, gpus, watts, pue, intensity):
    "The carbon follows from the MWh, in which the PUE is already."
    right = bill(tokens, speed, gpus, watts, pue, intensity)
    return right | {"tco2e": right["tco2e"] * pue}


@carbon_bill.mistake("speed of the whole cluster", hint=1)
def speed_of_the_whole_cluster(tokens, speed, gpus, watts, pue, intensity):
    "`speed` is that of one GPU: GPU-hours do not depend on the number of GPUs."
    return bill(tokens, speed * gpus, gpus, watts, pue, intensity)


@carbon_bill.mistake("months of one GPU", hint=1)
def months_of_one_gpu(tokens, speed, gpus, watts, pue, intensity):
    "All GPUs work at once: divide the GPU-hours by their number."
    return bill(tokens, speed, gpus, watts, pue, intensity) | {
        "months": tokens / speed / 86400 / 30.44
    }


@carbon_bill.mistake("kWh for MWh", hint=2)
def kwh_for_mwh(*case):
    "Watt-hours divided by a million are MWh."
    return (lambda right: right | {"mwh": 1000 * right["mwh"], "tco2e": 1000 * right["tco2e"]})(
        bill(*case)
    )


@carbon_bill.mistake("kilograms for tonnes", hint=3)
def kilograms_for_tonnes(*case):
    "kg a kWh is tonnes a MWh: no factor of a thousand is left."
    return (lambda right: right | {"tco2e": 1000 * right["tco2e"]})(bill(*case))


@carbon_bill.mistake("minutes for hours", hint=1)
def minutes_for_hours(tokens, speed, gpus, watts, pue, intensity):
    "An hour has 3,600 seconds."
    return bill(60 * tokens, speed, gpus, watts, pue, intensity)


@carbon_bill.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(tokens, speed, gpus, watts, pue, intensity):
    "Nothing was repaired: look at the speed, at the PUE and at the months."
    hours = tokens / (speed * gpus) / 3600
    mwh = hours * watts / 1e6
    return {
        "gpu_hours": hours,
        "mwh": mwh,
        "tco2e": mwh * pue * intensity,
        "months": hours / 24 / 30,
    }
