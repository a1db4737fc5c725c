"""lm-evaluation-harness's command with the model `edgeblt`: python -m edgeblt.evaluation --model edgeblt ..."""

import importlib.util
import sys

from edgeblt.errors import EdgebltError
from edgeblt.installing import install_hint
from edgeblt.printable import printable


def main() -> None:
    """Runs the harness with the arguments of this process; bad input to edgeblt is one sentence and exit code 2."""
    if importlib.util.find_spec("lm_eval") is None:
        _fail(f"this command needs lm-evaluation-harness; install it with: {install_hint('eval')}")
    import lm_eval.__main__

    from edgeblt.evaluation import lm_eval_model

    assert lm_eval_model.NAME
    try:
        lm_eval.__main__.cli_evaluate()
    except EdgebltError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    print(f"edgeblt: {printable(message)}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
