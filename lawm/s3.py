"""The one S3 client: of lawm's own code, and of Ray Train and Tune (`lawm/cluster/filesystem.py`).

It is configured as AWS's tools are, by environment and profile (AWS_PROFILE): keys, roles and sessions; the endpoint
(AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, `services` and `endpoint_url` of the profile); the region; proxies (HTTP_PROXY,
HTTPS_PROXY, NO_PROXY); the certificate authority (AWS_CA_BUNDLE, `ca_bundle`); attempts (AWS_MAX_ATTEMPTS); the
addressing style (`s3 = addressing_style = ...`), by path where an endpoint is named and the profile does not say.
Without any keys, or with AWS_NO_SIGN_REQUEST=1, requests are not signed: public buckets can be read.
"""

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lawm.config import LawmError

S3 = "s3://"
ATTEMPTS = 6
"""How often a request is made before it fails, unless AWS_MAX_ATTEMPTS says: with waits that double, half a minute."""


class StorageError(LawmError):
    """A place that cannot be read or written, and why."""


class NotFoundError(StorageError):
    """No such file, folder, object or bucket."""


class RefusedError(StorageError):
    """An object that is there and may not be read: forbidden, archived, or under a key of another's."""


def bucket_key(uri: str) -> tuple[str, str]:
    """s3://bucket/a/key -> (bucket, a/key). Raises StorageError where no bucket is named."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket:
        raise StorageError(f"{uri}: no bucket is named. Expected s3://bucket/key")
    return bucket, key


# ---------------------------------------------------------------- the client
class _Connection(NamedTuple):
    client: Any
    endpoint: str | None
    signed: bool


def client() -> Any:
    """boto3's client for what the environment and the profile say now. Raises StorageError and boto3's own errors."""
    return _connection().client


def endpoint() -> str | None:
    """The S3 endpoint that the environment or the profile names, or None for AWS itself. Raises StorageError."""
    return _connection().endpoint


def named_endpoint() -> str | None:
    """The same without making a client."""
    return _named_endpoint(_core())


def region() -> str:
    """The region of requests: AWS_DEFAULT_REGION, the profile's, AWS_REGION, or us-east-1."""
    return str(_core().get_config_variable("region") or os.environ.get("AWS_REGION") or "us-east-1")


_ALSO = ("HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "LAWM_S3_READ_TIMEOUT")
_lock = threading.Lock()


def _connection() -> _Connection:
    """One client per process (a fork must not share sockets) and per environment."""
    said = (item for item in os.environ.items() if item[0].startswith("AWS_") or item[0].upper() in _ALSO)
    # boto3's sessions are not thread-safe while they make a client; the client itself is.
    with _lock:
        try:
            return _connect(os.getpid(), tuple(sorted(said)))
        except ValueError as error:  # botocore's, for numbers and names that it cannot read
            raise StorageError(f"the S3 configuration cannot be used: {_line(error)}") from None


def _core() -> Any:
    import botocore.session

    return botocore.session.Session()


@functools.lru_cache(maxsize=8)
def _connect(pid: int, environment: tuple[tuple[str, str], ...]) -> _Connection:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    core = _core()
    url = _named_endpoint(core)
    asked = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes", "on")
    signed = not asked and core.get_credentials() is not None
    if not signed and not asked:
        said = "no S3 credentials were found: requests are not signed, and only public buckets can be read"
        print(f"lawm: {said} (AWS_NO_SIGN_REQUEST=1 asks for that)", file=sys.stderr)
    ca = core.get_config_variable("ca_bundle")
    if ca and not os.path.exists(ca):
        raise StorageError(f"AWS_CA_BUNDLE (or ca_bundle of the profile) = {ca}: no such file")
    profile = core.get_scoped_config()
    more: dict[str, Any] = {} if signed else {"signature_version": UNSIGNED}
    for name, variable in (
        ("request_checksum_calculation", "AWS_REQUEST_CHECKSUM_CALCULATION"),
        ("response_checksum_validation", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
    ):
        if variable not in os.environ and name not in profile:
            more[name] = "when_required"  # many S3 services do not know the newer checksums
    style = (profile.get("s3") or {}).get("addressing_style")
    made = boto3.session.Session(botocore_session=core).client(
        "s3",
        endpoint_url=url,
        region_name=region(),
        config=Config(
            connect_timeout=10,
            read_timeout=_read_timeout(),
            retries={
                "total_max_attempts": core.get_config_variable("max_attempts") or ATTEMPTS,
                "mode": core.get_config_variable("retry_mode") or "standard",
            },
            max_pool_connections=32,
            # Other S3 services seldom have a host name per bucket.
            s3={"addressing_style": str(style or ("path" if url else "auto"))},
            **more,
        ),
    )
    return _Connection(made, url, signed)


def _named_endpoint(core: Any) -> str | None:
    """In the order of AWS's tools; botocore looks it up too, but keeps to itself what it finds."""
    if core.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    profile = core.get_scoped_config()
    services: dict[str, Any] = {}
    if "services" in profile:
        services = (core.full_config.get("services") or {}).get(profile["services"]) or {}
        if not services:
            raise StorageError(f"the AWS profile names services = {profile['services']}, and there is no such section")
    for where, found in (
        ("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL_S3")),
        ("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL")),
        ("services of the AWS profile", (services.get("s3") or {}).get("endpoint_url")),
        ("endpoint_url of the AWS profile", profile.get("endpoint_url")),
    ):
        if found and found.strip():
            return _checked(found.strip().rstrip("/"), where)
    return None


def _checked(url: str, where: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right:
        raise StorageError(f"{where} = {url}: not the URL of a server. Expected http://HOST:PORT or https://HOST")
    return url


def _read_timeout() -> float:
    """Seconds without a byte before a connection counts as dead (LAWM_S3_READ_TIMEOUT; 60)."""
    try:
        return float(os.environ.get("LAWM_S3_READ_TIMEOUT", "60"))
    except ValueError:
        raise StorageError("LAWM_S3_READ_TIMEOUT: expected seconds, as in 60") from None


# ---------------------------------------------------------------- errors
_REFUSED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_BAD_KEYS = {
    "InvalidAccessKeyId": "there is no such AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret is not that of this key",
    "ExpiredToken": "the session has expired; sign in again",
    "ExpiredTokenException": "the session has expired; sign in again",
    "InvalidToken": "AWS_SESSION_TOKEN is not that of these keys",
    "401": "they are not known there",
}
_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def no_bucket(uri: str) -> NotFoundError:
    return NotFoundError(f"{uri}: there is no bucket {bucket_key(uri)[0]!r}{at()}. Create it, or correct the name")


@contextmanager
def errors(uri: str) -> Iterator[None]:
    """Turns what boto3 raises into a StorageError of one line that names `uri`."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    bucket_key(uri)
    try:
        yield
    except boto.ClientError as error:
        raise _answered(uri, error) from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError(f"{uri}: S3 credentials are missing: {_line(error)}. {_KEYS}") from None
    except (boto.ProfileNotFound, boto.ConfigParseError, boto.ConfigNotFound, boto.InvalidConfigError) as error:
        raise StorageError(f"{uri}: the AWS configuration cannot be used: {_line(error)}") from None
    except (boto.CredentialRetrievalError, boto.SSOError, boto.LoginError, boto.TokenRetrievalError) as error:
        raise StorageError(f"{uri}: the S3 credentials could not be had: {_line(error)}. Sign in again") from None
    except boto.ParamValidationError as error:
        raise StorageError(f"{uri}: not a valid S3 name: {_line(error)}") from None
    except (boto.BotoCoreError, Boto3Error) as error:
        hint = ""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = ". Where the server's certificate is of another authority, name that: AWS_CA_BUNDLE=FILE"
        raise StorageError(f"{uri}: cannot reach S3{at()}: {_line(error)}{hint}") from None


def check_bucket(uri: str) -> None:
    """Raises NotFoundError where the bucket is not there, StorageError where the server or the keys are wrong."""
    from botocore.exceptions import ClientError

    bucket, _ = bucket_key(uri)
    with errors(uri):
        try:
            client().head_bucket(Bucket=bucket)
        except ClientError as error:
            code, _ = _named(error, bucket, "")
            if code in ("404", "NotFound"):
                raise no_bucket(uri) from None
            # Who may write objects need not be allowed to list them.
            if code not in _REFUSED or not _connection().signed:
                raise


def _answered(uri: str, error: Any) -> StorageError:
    """What an error that a server has answered means."""
    bucket, key = bucket_key(uri)
    code, said = _named(error, bucket, key)
    if code == "NoSuchBucket":
        return no_bucket(uri)
    if code in ("NoSuchKey", "404", "NotFound"):
        return NotFoundError(f"{uri}: no such object{at()}")
    if code == "InvalidObjectState":
        where = error.response.get("Error", {}).get("StorageClass", "")
        return RefusedError(f"{uri}: archived{f' ({where})' if where else ''}{at()}. Restore it first, or leave it out")
    if code.startswith("KMS") or "Server Side Encryption" in said:
        return RefusedError(f"{uri}: encrypted with a key that these credentials may not use{at()} ({code}): {said}")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    kind = RefusedError if key.strip("/") and status == 403 else StorageError
    if status in (400, 401, 403) and not _connection().signed:
        return kind(f"{uri}: access denied{at()} ({code}) to requests that are not signed. {_KEYS}")
    if code in _REFUSED:
        return kind(f"{uri}: access denied{at()}. These credentials may not do this to bucket {bucket!r}")
    if code in _BAD_KEYS:
        public = "; a public bucket can be read without: AWS_NO_SIGN_REQUEST=1"
        return StorageError(f"{uri}: the credentials were refused{at()} ({code}): {_BAD_KEYS[code]}{public}")
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{uri}: refused{at()} ({code}): this machine's clock is wrong. Set it, as by NTP")
    return StorageError(f"{uri}: S3 answered {code or 'an error'}{at()}: {said}")


def _named(error: Any, bucket: str, key: str) -> tuple[str, str]:
    """Code and message. The answer to a HEAD has no body that could name its reason, so that a wrong secret looks like
    a missing right: the same is asked with a GET."""
    from botocore import exceptions as boto

    found = error
    if str(error.response.get("Error", {}).get("Code", "")) in ("400", "401", "403", "Forbidden"):
        try:
            if key.strip("/"):
                client().get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close()
            else:
                client().list_objects_v2(Bucket=bucket, MaxKeys=1)
        except boto.ClientError as other:
            # For an object that is not there, those who may not list are told that they may not read.
            found = error if other.response.get("Error", {}).get("Code") in ("NoSuchKey", "404") else other
        except (boto.BotoCoreError, OSError):
            pass
    told = found.response.get("Error", {})
    return str(told.get("Code", "")), " ".join(str(told.get("Message", "")).split())


def at() -> str:
    """' at http://...' where an endpoint is named, for messages."""
    try:
        url = named_endpoint()
    except Exception:  # the configuration itself is what is being told of
        return ""
    return f" at {url}" if url else ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
