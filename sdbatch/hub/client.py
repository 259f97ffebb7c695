"""The one place that talks to huggingface_hub: its errors become sentences, and no token is ever kept or shown."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from sdbatch.errors import WeightFileError
from sdbatch.hub.address import Address


class UnreachableError(WeightFileError):
    """The Hub cannot be asked now: the machine is offline, or told to be (HF_HUB_OFFLINE=1)."""


def is_offline() -> bool:
    """Whether this machine was told not to ask the Hub."""
    from huggingface_hub import constants  # 0.3 s of CPU: only where a repository is asked for

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def explained(address: Address) -> Generator[None]:
    """What goes wrong inside, as a WeightFileError that says what to do; UnreachableError when there is no network."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise WeightFileError(f"{address.repo}: is no repository of the Hub. Write owner/name, such as stabilityai/sdxl-turbo.") from None
    except errors.GatedRepoError:
        raise WeightFileError(
            f"{address.repo}: is gated. Accept its terms at {address.page}, make a read token at "
            "https://huggingface.co/settings/tokens and set it as HF_TOKEN in the environment; sdbatch never keeps it."
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightFileError(
            f"{address.repo}: the Hub has no such repository, or it is private. Check the name at {address.page}; "
            "for a private one set HF_TOKEN in the environment."
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightFileError(f"{address.repo}: has no revision {address.revision}. See {address.page}/commits/main.") from None
    except errors.RemoteEntryNotFoundError:
        raise WeightFileError(f"{address.repo}: has no file {address.file} at {address.revision}. See {address.page}/tree/main.") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise UnreachableError(f"{address.repo}: the Hub cannot be reached (offline).") from None
    except errors.HfHubHTTPError as fault:
        raise WeightFileError(f"{address.repo}: the Hub answered {fault.response.status_code}. Try again later.") from None
    except errors.HTTPError as fault:  # pyright: ignore[reportPrivateImportUsage]  # whichever httpx the installed version is built on
        raise UnreachableError(f"{address.repo}: the Hub cannot be reached ({type(fault).__name__}).") from None
