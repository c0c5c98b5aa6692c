"""Records as the official files have them."""

from stepagent.envs.mind2web import sites


def record(task_id):
    return sites.record(task_id)


def make_step_record(html="<html backend_node_id='1'/>", op="CLICK", value="", pos=(), neg=()):
    def candidate(node):
        return {"tag": "a", "attributes": "{}", "backend_node_id": node}

    return {
        "action_uid": f"u{op}{value}",
        "raw_html": html,
        "cleaned_html": html,
        "operation": {"op": op, "original_op": op, "value": value},
        "pos_candidates": [candidate(n) for n in pos],
        "neg_candidates": [candidate(n) for n in neg],
    }
