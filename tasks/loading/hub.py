"""The Hugging Face hub: a repository's files in the local hub cache, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

from foretune.storage.errors import BadInput


def hub_snapshot(repo_id: str, revision: str | None, patterns: list[str], setting: str) -> Path:
    """Folder of the files that match `patterns`, fetched once; `setting` names the request's key in errors.

    Works offline for what is already in the hub cache. Raises BadInput for an unknown id or revision, for a
    gated repository, and when the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    at = f"{setting} {repo_id}" + (f"@{revision}" if revision else "")
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError:
        raise BadInput(f"{at}: neither an existing path nor a hub id; write owner/name or a path") from None
    except errors.GatedRepoError:
        raise BadInput(f"{at}: gated on the hub; accept its licence there and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise BadInput(f"{at}: no such revision on the hub; name a branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise BadInput(f"{at}: not on the hub, or private; check the id or set HF_TOKEN") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise BadInput(
            f"{at}: the hub cannot be reached and its cache has no copy ({type(error).__name__}); "
            "give a local folder or an s3:// folder"
        ) from None
