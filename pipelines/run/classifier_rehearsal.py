"""Ready classifiers that pay or choose, as far as they can be known before the first stage: files, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.common.errors import UserError
from data.records import Message
from data.template import Renderer
from models.hub.load import load_tokenizer
from models.hub.validate import check_model
from models.roles.classifier import label_number
from pipelines.recipe.derived import choosing
from pipelines.recipe.schema import Recipe
from reward.settings import RewardPart
from reward.terms.classifier import classifier_folder

PROBE = Message(role="user", content="Is it?")


def check_classifiers(recipe: Recipe, chosen: Sequence[str]) -> None:
    """Check every classifier of the chosen stages whose files lie on this machine.

    Raises:
        UserError: it is none, cannot be loaded safely, or has not the label that is asked for.
    """
    for setting, part in _asked(recipe, chosen):
        try:
            folder = classifier_folder(part.source, recipe.base_dir, download=False)
            if folder is not None:
                from transformers import AutoConfig

                check_model(folder)
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
                label_number(config, part.label, folder)
                tokenizer = load_tokenizer(str(folder))
                if tokenizer.chat_template:
                    Renderer(tokenizer, template="auto").prompt_and_answer((PROBE,), "yes")
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(f"{setting}: {part.source} cannot be read ({str(error).splitlines()[0]})") from error


def _asked(recipe: Recipe, chosen: Sequence[str]) -> Iterator[tuple[str, RewardPart]]:
    parts = [("ppo.reward", recipe.ppo.reward)] if "ppo" in chosen else []
    if "evaluate" in chosen:
        parts += [(f"evaluation.best_of_by: {name}", terms) for name, terms in choosing(recipe).items()]
    for setting, terms in parts:
        yield from ((setting, part) for part in terms if part.kind == "classifier")
