"""The job ``demo`` as the command line runs it.

A module of its own, since what draws the picture takes a second to load.
"""

from launch import jobs
from launch.jobs import Entry, Running, Summary
from pipelines import demo


def run_demo(config: demo.DemoConfig, running: Running) -> Summary:
    """Make a sample, ingest, embed and export it, and draw what came of it."""
    if running.planned(demo.plan_lines(config)):
        return {"dry_run": True, "plan": {"job": "demo", "output": config.below()}}
    running.out.say("sample: made" if demo.make_sample(config) else "sample: there already")
    for each in config.ingests():
        jobs.run_ingest(each, running)
    summary = jobs.run_embed(config.embed(running.asked.workers), running)
    jobs.run_export(config.export(), running)
    found = demo.account(config, f"segclr-beam demo: {summary['model']}")
    kinds = ", ".join(f"{n:,} {name}" for name, n in found["kinds"].items())
    running.out.say(
        f"{found['embeddings']:,} embeddings of {found['segments']:,} segments: {kinds}",
        f"the five nearest of other segments agree on the kind for {found['knn']:.0%} (always "
        f"naming the commonest kind: {found['majority']:.0%}); the network is untrained, so expect "
        "little of it",
        f"picture: {found['picture']}",
    )
    return {**summary, "demo": found}


JOBS: dict[str, Entry] = {"demo": (demo.DemoConfig, run_demo)}
"""The jobs of this module."""
