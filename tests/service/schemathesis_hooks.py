"""What schemathesis is told beside the document and its configuration (see interface.rs)."""

import schemathesis


@schemathesis.hook
def filter_case(context, case):
    # It takes a header that the document does not name for bad data; HTTP wants such headers ignored (RFC 9110, 5.1).
    return "x-schemathesis-unknown-property" not in {name.lower() for name in case.headers or {}}
