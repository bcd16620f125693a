"""The plan of a reprocess: the store's own request, with what is replaced, looked at again."""

import dataclasses

from pipelines.embed.config import EmbedConfig
from pipelines.embed.plan import EmbedPlan
from pipelines.embed.resolving import Resolved, recipe_of, resolved
from pipelines.reprocess.config import ReprocessConfig
from pipelines.request import store_url
from volumes import objects, store
from volumes.errors import RequestError


def plan(config: ReprocessConfig) -> EmbedPlan:
    """Look at the store and its inputs and decide what will run; nothing is written.

    A generation has one recipe: model and parameters. Where the recipe is the same, the store's
    newest generation is renewed, box by box; another recipe makes the next generation, which is
    embedded whole, and the versions of the older ones stay readable.

    Raises:
        RequestError: There is no such store, or the request cannot work.
    """
    url = store_url(config.store)
    name, standing = store.current(url)
    if standing is None:
        raise RequestError(
            f"--store {objects.redacted(config.store)} has no manifest, so there is nothing to "
            "bring up to date: its embed run did not begin; run that command again"
        )
    asked = config.applied(EmbedConfig.from_json(standing["request"]))
    found = resolved(asked, name, standing)
    if recipe_of(found.identity) == recipe_of(standing["identity"]):
        return _planned(asked, found, renew=True)
    return _planned(asked, resolved(asked, str(int(name) + 1), None), renew=False)


def _planned(config: EmbedConfig, found: Resolved, *, renew: bool) -> EmbedPlan:
    return EmbedPlan(
        config=config,
        work=dataclasses.replace(found.work, renew=renew),
        source=found.source,
        survey=found.survey,
        estimate=found.estimate,
        identity=found.identity,
        table=found.table,
        resuming=True,
        complete=None,
        replaces=True,
        job="reprocess",
    )
