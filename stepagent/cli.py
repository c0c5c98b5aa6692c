"""The command `stepagent`."""


def main() -> int:
    return 0
