"""`melete models ls | get | show`: the models that every other command takes by name."""

from __future__ import annotations

from typing import Annotated

import typer

from melete.cli_errors import plain_errors

models = typer.Typer(name="models", help="See, fetch and look into models.", no_args_is_help=True)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@models.command("ls")
def models_ls(debug: Debug = False) -> None:
    """List the models that have a name, and whether they are on this machine."""
    with plain_errors(debug):
        from melete.models.places import BUNDLED, FETCHED, cache_directory, fetched_directory

        kept = cache_directory() / "models"
        others = sorted(path.parent.name for path in kept.glob("[!.]*/config.json"))
        for name in BUNDLED:
            typer.echo(f"{name:<16}  bundled")
        for name in FETCHED:
            is_here = fetched_directory(name).is_dir()
            typer.echo(f"{name:<16}  {'in the cache' if is_here else f'not fetched yet: melete models get {name}'}")
        for name in others:
            if name not in FETCHED:
                typer.echo(f"{name.replace('--', '/', 1):<16}  in the cache")


@models.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="A name of `melete models ls`, or owner/name on the Hugging Face hub.")],
    debug: Debug = False,
) -> None:
    """Fetch a model, convert it if it has to be, and keep it in the cache."""
    with plain_errors(debug):
        from melete.models.fetch import get_model
        from melete.models.places import BUNDLED, FETCHED, is_hub_name
        from melete.suggest import did_you_mean

        if name in BUNDLED:
            typer.echo(f"{name} is bundled: nothing is to be fetched")
            return
        if name not in FETCHED and not is_hub_name(name):
            from melete.errors import ModelError

            remedy = "a name that `melete models ls` lists, or owner/name on the Hugging Face hub"
            raise ModelError(f"no model is called {name!r}; {did_you_mean(name, FETCHED)}", remedy=remedy)
        get_model(name, typer.echo)


@models.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="A name of `melete models ls`, or a directory.")], debug: Debug = False
) -> None:
    """Show what a model is: its shape, its tokens, what it takes to sample from it and to train it."""
    with plain_errors(debug):
        from melete.models.describe import described

        for key, value in described(name).items():
            typer.echo(f"{key:<16}  {value}")
