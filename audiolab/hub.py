"""The Hugging Face hub: whether it can deliver a model, asked once and briefly.

Its own client asks for each file, five times with growing pauses, before it says that there is no network.
"""

from __future__ import annotations

import threading

PATIENCE_S = 5.0  # for an answer to one small request; a hub that is there answers within a second


def why_unreachable(name: str, patience_s: float = PATIENCE_S) -> str | None:
    """Return why the hub cannot deliver the model `name`, in a few words, or None when it answers that it can.

    A copy in the local cache may serve all the same: `local_files_only=True` of the libraries takes it unasked.
    """
    answers: list[str | None] = []
    # in a thread of its own, because looking up the hub's address may take far longer than any timeout that can be set
    asking = threading.Thread(target=lambda: answers.append(_ask(name, patience_s)), daemon=True)
    asking.start()
    asking.join(patience_s)
    return answers[0] if answers else f"no answer within {patience_s:.0f} s"


def _ask(name: str, patience_s: float) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=patience_s)
    except EntryNotFoundError:
        return None  # it is there and has another file
    except GatedRepoError:
        return "it asks for your consent on the model's page, and for a login with: hf auth login"
    except RepositoryNotFoundError:
        return "it has no model of this name that you may read"
    except HfHubHTTPError as error:
        return f"it answered {error.response.status_code}"
    except Exception as error:  # the exceptions are those of the HTTP client, which differs between versions
        return f"{type(error).__name__}: {error}"
    return None
