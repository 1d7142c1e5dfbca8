"""Starts ministack so that it answers as AWS documents; README.md lists what is corrected here, and why.

A correction that does not find what it corrects ends the start: another version of ministack must be looked at again.
"""

import contextvars
import inspect
import json
import sys
import threading

from ministack import app
from ministack.services import stepfunctions as states


def edit(module, name, *passages):
    """Replaces passages of a function's source. Each must be there exactly once."""
    source = inspect.getsource(getattr(module, name))
    for old, new in passages:
        if source.count(old) != 1:
            sys.exit(f"{module.__name__}.{name} is not what it was: look for {old!r}, and correct this file")
        source = source.replace(old, new)
    exec(compile(source, f"<{module.__name__}.{name}, corrected>", "exec"), vars(module))


def wrap(module, name):
    """Replaces a function by what the decorated function makes of it."""
    def replace(make):
        setattr(module, name, make(getattr(module, name)))
    return replace


# Step Functions: quotas

PAYLOAD_LIMIT = 262_144
HISTORY_LIMIT = 25_000


def limited(definition, value):
    """The value, if a state of this definition may take or return it."""
    encoded = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(encoded) > PAYLOAD_LIMIT:
        state = definition.get("Resource", definition.get("Type"))
        cause = f"The state/task '{state}' returned a result with a size exceeding the maximum number of bytes service limit."
        raise states._ExecutionError("States.DataLimitExceeded", cause)
    return value


for function in ["_apply_parameters", "_apply_output_path", "_apply_jsonata_arguments", "_apply_jsonata_output", "_apply_catcher"]:
    @wrap(states, function)
    def _(original):
        return lambda definition, *rest, **named: limited(definition, original(definition, *rest, **named))


@wrap(states, "_apply_result_selector")
def _(original):
    # What a task, or all children of a Map, returned counts, whatever becomes of it.
    return lambda definition, result: original(definition, limited(definition, result))


@wrap(states, "_error_matches")
def _(original):
    final = ("States.DataLimitExceeded", "States.Runtime")
    return lambda error_equals, error: error not in final and original(error_equals, error)


@wrap(states, "_add_event")
def _(original):
    def add(execution, event_type, details=None):
        # The last one can only be the execution's end.
        if len(execution["events"]) >= HISTORY_LIMIT - 1 and execution["status"] == "RUNNING":
            cause = f"The execution reached the maximum number of history events ({HISTORY_LIMIT})."
            raise states._ExecutionError("States.Runtime", cause)
        event = original(execution, event_type, details)
        if event_type == "TaskScheduled":
            add(execution, "TaskStarted")
        return event
    return add


# Step Functions: how executions end

def end_children(parent):
    """The children of an execution that is over are aborted, whatever they wait for."""
    runs = {run["mapRunArn"] for run in states._map_runs.values() if run["executionArn"] == parent["executionArn"]}
    for child in list(states._executions.values()):
        if child.get("mapRunArn") in runs and child["status"] == "RUNNING":
            child["status"] = "ABORTED"
            wake(child)
    wake(parent)


def wake(execution):
    for token in execution.get("tokens", ()):
        if task := states._task_tokens.get(token):
            task["error"] = {"Error": "States.Runtime", "Cause": "The execution is over."}
            task["event"].set()


def time_out(execution):
    if execution["status"] == "RUNNING":
        execution["status"] = "TIMED_OUT"
        execution["stopDate"] = states.now_iso()
        states._add_event(execution, "ExecutionTimedOut")
        states._emit_execution_status_event(execution)
        end_children(execution)


def limit_time(execution, definition):
    if seconds := definition.get("TimeoutSeconds"):
        timer = threading.Timer(seconds, contextvars.copy_context().run, [time_out, execution])
        timer.daemon = True
        timer.start()


def failed_child(child):
    """A failed child among the results of a Map: "equivalent to having set Transformation to NONE"."""
    names = ["executionArn", "name", "stateMachineArn", "status", "startDate", "stopDate", "input", "inputDetails", "error", "cause"]
    return {name[0].upper() + name[1:]: child[name] for name in names if name in child}


@wrap(states, "_stop_execution")
def _(original):
    def stop(request):
        answer = original(request)
        if execution := states._executions.get(request.get("executionArn")):
            if execution["status"] == "ABORTED":
                end_children(execution)
        return answer
    return stop


@wrap(states, "_fail_execution")
def _(original):
    # It may have been stopped in the meantime.
    return lambda execution, *why: original(execution, *why) if execution["status"] == "RUNNING" else None


edit(
    states, "_run_execution",
    ('    all_states = definition.get("States", {})\n', '    _limit_time(execution, definition)\n    all_states = definition.get("States", {})\n'),
)
edit(
    states, "_run_distributed_map",
    (
        '        _executions[child["executionArn"]] = child\n',
        '        if execution["status"] != "RUNNING":\n'
        '            return\n'
        '        _executions[child["executionArn"]] = child\n'
        '        _emit_execution_status_event(child)\n',
    ),
    (
        '            child.update(status="FAILED", error=err.error, cause=err.cause)\n            outcome = "failed"\n',
        '            if child["status"] == "RUNNING":\n'
        '                child.update(status="FAILED", error=err.error, cause=err.cause)\n'
        '            outcome = child["status"].lower()\n',
    ),
    (
        '        child["stopDate"] = now_iso()\n',
        '        child["stopDate"] = now_iso()\n'
        '        if failures[idx] is not None:\n'
        '            results[idx] = _failed_child(child)\n'
        '        _emit_execution_status_event(child)\n',
    ),
)
edit(
    states, "_run_sub_machine",
    (
        "        state_def = states.get(current_name)\n",
        "        state_name = current_name\n"
        "        state_def = states.get(current_name)\n",
    ),
    (
        '        ctx["State"] = ',
        '        _add_event(execution, f"{state_type}StateEntered", {"stateEnteredEventDetails": {\n'
        '            "name": current_name, "input": json.dumps(current_input)}})\n'
        '        ctx["State"] = ',
    ),
    (
        "                state_def, current_input, ctx)\n",
        "                state_def, current_input, ctx)\n"
        '        _add_event(execution, f"{state_type}StateExited", {"stateExitedEventDetails": {\n'
        '            "name": state_name, "output": json.dumps(current_input)}})\n'
        '        if execution["status"] != "RUNNING":\n'
        '            raise _ExecutionError("States.Runtime", "The execution is over.")\n',
    ),
)
edit(
    states, "_execute_task",
    ('    if is_callback:\n        ctx["Task"] = {"Token": new_uuid()}\n', ""),
    (
        '        ctx["State"]["RetryCount"] = sum(retry_counts.values())\n',
        '        ctx["State"]["RetryCount"] = sum(retry_counts.values())\n'
        "        if is_callback:\n"
        '            ctx["Task"] = {"Token": new_uuid()}\n'
        '            execution.setdefault("tokens", []).append(ctx["Task"]["Token"])\n',
    ),
)
edit(
    states, "_invoke_with_callback",
    (
        "            _call_lambda(func_ref, lambda_payload)\n        except _ExecutionError:\n            pass\n",
        "            _call_lambda(func_ref, lambda_payload)\n        except _ExecutionError:\n"
        "            _task_tokens.pop(token, None)\n            raise\n",
    ),
)
for function in ["_send_task_success", "_send_task_failure", "_send_task_heartbeat"]:
    edit(states, function, (
        '"TaskDoesNotExist", "Task token not found"',
        '"TaskTimedOut", "Task Timed Out: \'Provided task does not exist anymore\'"',
    ))
states._limit_time = limit_time
states._failed_child = failed_child

if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    app.main()
