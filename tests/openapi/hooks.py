"""What schemathesis cannot know from docs/openapi.yaml: texts of the formats that only we have."""

import ipaddress

import schemathesis
from hypothesis import strategies as st

address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def _prefix(ip, bits):
    return str(ipaddress.ip_network((ip, bits % (ip.max_prefixlen + 1)), strict=False))


prefix = st.builds(_prefix, address, st.integers(0, 128))
schemathesis.openapi.format("prefix", prefix)
schemathesis.openapi.format("address-or-prefix", st.one_of(address.map(str), prefix))


@schemathesis.hook
def before_call(context, case, kwargs):
    """The server is asked whether it could be upgraded, and not upgraded: each upgrade takes seconds."""
    if case.operation.path == "/v1/upgrade" and isinstance(case.body, dict) and case.body.get("check", False) is False:
        case.body = {**case.body, "check": True}
