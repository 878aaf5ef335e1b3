"""Uploads an export to the Hugging Face Hub.

https://huggingface.co/docs/huggingface_hub/guides/upload. Nothing is asked of the Hub before the
export is written and verified; what can be known without it is checked before the weights are read.
"""

from pathlib import Path

from negclip_jax.common.errors import InputError


def check(name: str) -> None:
    """Raises InputError for a name that no repository has, and where there is no token."""
    import huggingface_hub  # a third of a second that other exports need not pay
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise InputError(f"--push-to-hub={name}: {error}") from None
    if not huggingface_hub.get_token():
        raise InputError(
            f"--push-to-hub={name} needs a token that may write: set HF_TOKEN, or run hf auth login"
        )


def push(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a folder in one commit, to a repository that is made where there is none.

    `private` makes it visible to its owners alone; an existing public one is refused. Returns the
    repository's address. Raises InputError for whatever the Hub or the network says.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        # Without --private an organisation's own default counts.
        made = api.create_repo(name, private=True if private else None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise InputError(f"{made.repo_id} is public already: --private is for a new repository")
        message = "Upload by negclip_jax.interop.export"
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
        return str(made)
    except InputError:
        raise
    except Exception as error:  # httpx, OSError, ValueError: the Hub's errors have no common base
        told = [line for line in str(error).splitlines() if line.strip()]
        shown = " ".join(dict.fromkeys((*told[:1], *told[-1:])))  # the status, and the Hub's words
        raise InputError(
            f"the export is in {folder}, and was not uploaded to {name} "
            f"({type(error).__name__}: {shown})"
        ) from error


def usage(code: str, name: str) -> str:
    """Code that loads an export from `{out}`, from the Hub's repository `name` instead."""
    if "local-dir:{out}" in code:
        return code.replace("local-dir:{out}", f"hf-hub:{name}")
    if '"{out}/' not in code:
        return code.replace("{out}", name)
    got = f'from huggingface_hub import snapshot_download\n\nout = snapshot_download("{name}")\n'
    return got + code.replace('"{out}/', 'out + "/')
