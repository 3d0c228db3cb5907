"""The options of `mtlops export` that write a finished bundle as another server wants it."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from mtlops.catalog import REFERENCE_VARIANT
from mtlops.errors import UsageError

_LAYOUTS = ("triton", "kserve")
_ALONE = ("bundle", "to", "variant", "image", "storage_uri")


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds the options to the parser of `mtlops export`."""
    group = command.add_argument_group(
        "a finished bundle for another server; params.yaml and the options above are not used"
    )
    group.add_argument("--layout", choices=_LAYOUTS, help="a model repository for Triton, or manifests for KServe")
    group.add_argument("--bundle", type=Path, metavar="DIR", help="bundle to read (default models/candidate)")
    group.add_argument("--to", type=Path, metavar="DIR", help="folder to make (default build/<layout>)")
    group.add_argument("--variant", metavar="NAME", help=f"of the bundle's graph (default {REFERENCE_VARIANT})")
    group.add_argument("--image", metavar="NAME", help="kserve: container image with mtlops (default $MTLOPS_IMAGE)")
    group.add_argument("--storage-uri", metavar="URI", help="kserve: from where the cluster fetches the folder model")


def is_wanted(options: argparse.Namespace) -> bool:
    """Returns whether a layout is asked for, and not the step.

    Raises:
        UsageError: an option is given that only a layout has.
    """
    if options.layout is None:
        for name in _ALONE:
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')}: is for --layout {' or '.join(_LAYOUTS)}. Give that, too."
                )
    return options.layout is not None


def write(options: argparse.Namespace) -> None:
    """Writes the layout and says what there is."""
    from mtlops.bundle import Bundle
    from mtlops.export import layouts

    bundle = Bundle.open(options.bundle or Path("models/candidate"))
    to, variant = options.to or Path("build") / options.layout, options.variant or REFERENCE_VARIANT
    if options.layout == "triton":
        for name in ("image", "storage_uri"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')}: is for --layout kserve. Remove it.")
        written = layouts.write_triton(bundle, to, variant=variant)
    else:
        image = options.image or os.environ.get("MTLOPS_IMAGE")
        if not image:
            raise UsageError(
                "--image: say which container image the cluster runs, as in registry.example/mtlops:0.1.0."
            )
        uri = options.storage_uri or layouts.STORAGE_PLACEHOLDER
        written = layouts.write_kserve(bundle, to, image=image, variant=variant, storage_uri=uri)
    if options.json:
        print(json.dumps(dataclasses.asdict(written)))
        return
    print(f"{written.path}: {written.layout}, bundle {written.bundle}, variant {written.variant}")
    for file in written.files:
        print(f"  {file}")
