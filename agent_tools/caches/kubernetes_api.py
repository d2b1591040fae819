"""Read an ``LMCacheEngine`` resource through a Kubernetes API, with the `kubernetes` client. Nothing is ever written there.

Group, version and plural were read from the operator's sources. This was tested against a stand-in of the API, not on a cluster.
"""

import json
import os
from typing import Any

from agent_tools.errors import SettingsError, UnreachableError
from agent_tools.extras import installing
from agent_tools.plain import plain

GROUP, VERSION, PLURAL = "lmcache.lmcache.ai", "v1alpha1", "lmcacheengines"
PATIENCE = 5.0
"""Seconds that the API is given to connect, and to answer."""
_WHY = {
    401: "it does not know us: the credentials of the kubeconfig or service account are wrong or out of date",
    403: f"it does not let us read {PLURAL}.{GROUP}: give the account the verb get on them",
    404: "there is no such resource, or LMCache's operator is not installed there",
}


def read_from_cluster(name: str, namespace: str, context: str | None) -> dict[str, Any]:
    """Return a resource as the API has it now.

    Inside a pod the pod's service account is used, unless a context is named; elsewhere ``KUBECONFIG`` or ``~/.kube/config``.

    Args:
        name: Name of the resource.
        namespace: Its namespace.
        context: Context of the kubeconfig. ``None`` means the current one.

    Raises:
        SettingsError: The `kubernetes` client is not installed, no credentials were found, or the API refuses to show the
            resource.
        UnreachableError: The API does not answer.
    """
    try:
        from kubernetes.client import ApiClient, ApiException, CustomObjectsApi
        from urllib3.exceptions import HTTPError
    except ImportError as error:
        raise SettingsError(f"kubernetes.name needs the `kubernetes` client: {installing('kubernetes')}") from error
    where = f"the resource {plain(name)} in namespace {plain(namespace)}"
    with ApiClient(_configuration(context)) as client:
        try:
            answer = CustomObjectsApi(client).get_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, name, _request_timeout=PATIENCE, _preload_content=False
            )
            found = json.loads(answer.data)
        except ApiException as error:
            why = _WHY.get(error.status, plain(error.reason))
            raise SettingsError(f"the Kubernetes API answered {error.status} for {where}: {why}") from error
        except HTTPError as error:
            raise UnreachableError(f"no Kubernetes API answered for {where}: {type(error).__name__}") from error
        except ValueError as error:
            raise SettingsError(f"what answered for {where} is no Kubernetes API: it did not send JSON") from error
    return found if isinstance(found, dict) else {}


def _configuration(context: str | None) -> Any:  # noqa: ANN401  the client is untyped
    """Return the address and the credentials of the API, without touching the client's global default."""
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    configuration = Configuration()
    configuration.retries = 0
    try:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(client_configuration=configuration)
        else:
            load_kube_config(os.environ.get("KUBECONFIG") or None, context, configuration, persist_config=False)
    except (ConfigException, OSError) as error:
        raise SettingsError(f"there are no credentials for a Kubernetes API: {plain(error)}") from error
    return configuration
