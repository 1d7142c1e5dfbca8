"""Starts ministack so that it answers as AWS documents. README.md lists the corrections and their reasons.

A correction that does not find what it corrects ends the start: another version of ministack must be looked at again.
"""

import contextvars
import inspect
import itertools
import json
import re
import sys
import threading

from ministack import app
from ministack.core import iam_actions
from ministack.core.responses import error_response_json as error, get_account_id, get_region, json_response
from ministack.services import cloudformation, cloudwatch_logs as logs, ecr, ecs, eventbridge, ssm, stepfunctions as states
from ministack.services.cloudformation import handlers, provisioners


def edit(module, name, *passages):
    """Replaces passages of a function's source. Each must be there exactly once."""
    source = inspect.getsource(getattr(module, name))
    for old, new in passages:
        if source.count(old) != 1:
            sys.exit(f"{module.__name__}.{name} is not what it was: look for {old!r}, and correct this file")
        source = source.replace(old, new)
    exec(compile(source, f"<{module.__name__}.{name}, corrected>", "exec"), vars(module))


def wrap(module, name):
    """Replaces a function, also in the module's tables of functions, by what the decorated function makes of it."""
    def replace(make):
        original = getattr(module, name)
        corrected = make(original)
        for table in [vars(module), *(it for it in vars(module).values() if isinstance(it, dict))]:
            table.update({key: corrected for key, value in table.items() if value is original})
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


@wrap(states, "_create_state_machine")
def _(original):
    return lambda request: original(request) if len(request.get("name", "")) <= 80 else error(
        "InvalidName", f"Invalid Name: '{request['name']}'")


@wrap(provisioners, "_sfn_definition")
def _(original):
    # Called for every machine of a template.
    def definition(properties):
        name = properties.get("StateMachineName", "")
        if len(name) > 80:
            raise ValueError(f"StateMachineName: expected maxLength: 80, actual: {len(name)}")
        return original(properties)
    return definition


# ECR

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


def paged(request, chosen, field, items):
    """A page of `items`, which cannot be asked for together with the ones that were chosen."""
    most = request.get("maxResults", 100)
    if not 1 <= most <= 1_000 or request.get(chosen) and ("maxResults" in request or "nextToken" in request):
        return error("InvalidParameterException", f"Invalid parameter at 'maxResults' failed to satisfy constraint: {most}")
    if request.get(chosen):
        return json_response({field: items})
    start = int(request.get("nextToken", 0))
    more = {"nextToken": str(start + most)} if start + most < len(items) else {}
    return json_response({field: items[start:start + most], **more})


def is_wanted(request, image):
    """Whether the filter of a listing lets an image through."""
    wanted = {"tagStatus": "ANY", "imageStatus": "ACTIVE", **(request.get("filter") or {})}
    status = {"tagStatus": "TAGGED" if image.get("imageTags") else "UNTAGGED", "imageStatus": image.get("imageStatus", "ACTIVE")}
    return all(wanted[name] in ("ANY", status[name]) for name in status)


def manifest_of(image):
    try:
        return dict(json.loads(image["imageManifest"]))
    except (KeyError, TypeError, ValueError):
        # ministack takes what is no manifest.
        return {}


def size(repository, image):
    manifest = manifest_of(image)
    if image.get("imageManifestMediaType") in INDEXES:
        children = [ecr._find_image(repository, {"imageDigest": it.get("digest")}) for it in manifest.get("manifests", [])]
        return max((size(repository, child) for child in children if child), default=0)
    return sum(blob.get("size", 0) for blob in [manifest.get("config", {}), *manifest.get("layers", [])])


@wrap(ecr, "_describe_images")
def _(original):
    def describe(request):
        repository, chosen = request.get("repositoryName", ""), request.get("imageIds") or []
        answer = original(request)
        if answer[0] != 200:
            return answer
        if not all(ecr._find_image(repository, image) for image in chosen):
            return error("ImageNotFoundException", "The image requested does not exist in the specified repository.")
        details = []
        for detail in json.loads(answer[2])["imageDetails"]:
            image = ecr._find_image(repository, {"imageDigest": detail["imageDigest"]})
            detail["imageSizeInBytes"] = size(repository, image)
            detail["imageStatus"] = image.get("imageStatus", "ACTIVE")
            if subject := manifest_of(image).get("subject"):
                detail["subjectManifestDigest"] = subject["digest"]
            if not detail["imageTags"]:
                del detail["imageTags"]
            if chosen or is_wanted(request, image):
                details.append(detail)
        return paged(request, "imageIds", "imageDetails", details)
    return describe


@wrap(ecr, "_list_images")
def _(original):
    def list_images(request):
        answer = original(request)
        ids = [
            {"imageDigest": image["imageDigest"], **({"imageTag": tag} if tag else {})}
            for image in ecr._images.get(request.get("repositoryName", ""), []) if is_wanted(request, image)
            for tag in image.get("imageTags") or [None]
        ]
        return paged(request, "", "imageIds", ids) if answer[0] == 200 else answer
    return list_images


@wrap(ecr, "_describe_repositories")
def _(original):
    def describe(request):
        answer = original({**request, "maxResults": len(ecr._repositories)})
        if answer[0] != 200:
            return answer
        return paged(request, "repositoryNames", "repositories", json.loads(answer[2])["repositories"])
    return describe


@wrap(ecr, "_batch_get_image")
def _(original):
    def failed(image_id, code):
        return {"images": [], "failures": [{"imageId": image_id, "failureCode": code, "failureReason": code}]}

    def get(repository, image_id, answer):
        found = ecr._find_image(repository, image_id)
        tag, digest = image_id.get("imageTag"), image_id.get("imageDigest")
        if not tag and not digest:
            return failed(image_id, "MissingDigestAndTag")
        if found and tag and digest and tag not in found.get("imageTags", []):
            return failed(image_id, "ImageTagDoesNotMatchDigest")
        if found and found.get("imageStatus", "ACTIVE") != "ACTIVE":
            return failed(image_id, "ImageNotFound")
        for image in answer["images"]:
            image["imageId"] = {"imageDigest": found["imageDigest"], **({"imageTag": tag} if tag else {})}
        return answer

    def batch_get(request):
        answer, ids = original({**request, "imageIds": []}), request.get("imageIds", [])
        if answer[0] != 200:
            return answer
        if not 1 <= len(ids) <= 100:
            return error("InvalidParameterException", "Invalid parameter at 'imageIds' failed to satisfy constraint: 1 to 100")
        each = [get(request["repositoryName"], it, json.loads(original({**request, "imageIds": [it]})[2])) for it in ids]
        return json_response({field: [it for answer in each for it in answer[field]] for field in ("images", "failures")})
    return batch_get


@wrap(ecr, "_delete_repository")
def _(original):
    def delete(request):
        answer = original(request)
        if answer[0] == 200:
            for content in (ecr._manifest_blobs, ecr._layer_blobs, ecr._uploads):
                content.pop(request["repositoryName"], None)
        return answer
    return delete


@wrap(ecr, "_resolve_manifest")
def _(original):
    def resolve(repository, reference):
        name = "imageDigest" if reference.startswith("sha256:") else "imageTag"
        image = ecr._find_image(repository, {name: reference})
        is_archived = image and image.get("imageStatus", "ACTIVE") != "ACTIVE"
        return (None, None, None) if is_archived else original(repository, reference)
    return resolve


def update_storage_class(request):
    image = ecr._find_image(request.get("repositoryName", ""), request.get("imageId", {}))
    if not image:
        return error("ImageNotFoundException", "The image requested does not exist in the specified repository.")
    image["imageStatus"] = "ARCHIVED" if request.get("targetStorageClass") == "ARCHIVE" else "ACTIVE"
    answer = {name: request[name] for name in ("repositoryName", "imageId")}
    return json_response({**answer, "registryId": get_account_id(), "imageStatus": image["imageStatus"]})


ecr._update_storage_class = update_storage_class
edit(ecr, "handle_request", (
    '        "DescribeImages": _describe_images,\n',
    '        "DescribeImages": _describe_images,\n        "UpdateImageStorageClass": _update_storage_class,\n',
))
edit(ecr, "_v2_put_manifest", ("    if existing:\n", '    if existing:\n        existing.pop("imageStatus", None)\n'))


# IAM: the resource of a call of ECR. Of several repositories, the first one decides.

@wrap(iam_actions, "extract_resource_arn")
def _(original):
    def resource(service, method, path, headers, body, query_params, region, account_id):
        arn = original(service, method, path, headers, body, query_params, region, account_id)
        action = headers.get("x-amz-target", "").rpartition(".")[2]
        if service != "ecr" or arn != "*" or action == "GetAuthorizationToken":
            return arn
        request = json.loads(body or b"{}")
        name = (request.get("repositoryNames") or ["*"])[0]
        return request.get("resourceArn") or f"arn:aws:ecr:{region}:{account_id}:repository/{name}"
    return resource


# ECS

requests = {}


@wrap(ecs, "_run_task")
def _(original):
    def run(request):
        if definition := ecs._task_defs.get(ecs._resolve_td_key(request.get("taskDefinition", ""))):
            request = {**request, "group": request.get("group") or f"family:{definition['family']}"}
        cluster = ecs._resolve_cluster_name(request.get("cluster", "default"))
        key = (get_account_id(), get_region(), cluster, request.get("clientToken"))
        earlier, answer = requests.get(key, (request, None))
        if earlier != request:
            tasks = [task["taskArn"] for task in json.loads(answer[2])["tasks"]]
            return error("ConflictException", "The clientToken is in use with another request.", extra={"resourceIds": tasks})
        answer = answer or original(request)
        if request.get("clientToken") and answer[0] == 200:
            requests[key] = (request, answer)
        return answer
    return run


@wrap(ecs, "_list_tasks")
def _(original):
    others = ("containerInstance", "desiredStatus", "family", "launchType", "serviceName")

    def list_tasks(request):
        if request.get("active"):
            # For local/src/fargate.rs: the tasks of all clusters that have not stopped.
            return json_response({"tasks": [ecs._sanitize(it) for it in ecs._tasks.values() if it["lastStatus"] != "STOPPED"]})
        if request.get("startedBy") and any(request.get(name) for name in others):
            return error("InvalidParameterException", "startedBy must be the only filter.")
        return original(request)
    return list_tasks


@wrap(ecs, "_stop_task")
def _(original):
    def stop(request):
        # The outcome comes from local/src/fargate.rs, when the containers have ended.
        outcome = request.get("outcome")
        cluster = ecs._resolve_cluster_name(request.get("cluster", "default"))
        task = ecs._resolve_task(request.get("task", ""), cluster) if cluster else None
        if not task or task["lastStatus"] == "STOPPED" and not outcome:
            return original(request)
        if outcome:
            # Otherwise ministack takes it for stopped already.
            task["desiredStatus"] = "RUNNING"
            original(request)
            task.update(outcome["task"], desiredStatus="STOPPED")
            for container in task["containers"]:
                container.update(outcome["container"])
            for _ in range(request["events"]):
                eventbridge._put_events({"Entries": [{
                    "Source": "aws.ecs", "DetailType": "ECS Task State Change", "Resources": [task["taskArn"]],
                    "Detail": json.dumps(ecs._sanitize(task)),
                }]}, allow_aws_source=True)
        elif task["desiredStatus"] != "STOPPED":
            task.update(desiredStatus="STOPPED", stopCode="UserInitiated", stoppingAt=ecs._iso(),
                        stoppedReason=request.get("reason", "Task stopped by user"))
        return json_response({"task": ecs._sanitize(task)})
    return stop


def associate(logical_id, properties, stack):
    """AWS::ECS::ClusterCapacityProviderAssociations."""
    strategy = provisioners._pascal_to_camel(properties["DefaultCapacityProviderStrategy"])
    ecs._put_cluster_capacity_providers({
        "cluster": properties["Cluster"], "capacityProviders": properties["CapacityProviders"],
        "defaultCapacityProviderStrategy": strategy,
    })
    return properties["Cluster"], {}


provisioners._RESOURCE_HANDLERS["AWS::ECS::ClusterCapacityProviderAssociations"] = {
    "create": associate, "delete": lambda cluster, properties: None,
}


# EventBridge

@wrap(eventbridge, "_put_events")
def _(original):
    # local/src/fargate.rs may send events of AWS services.
    return lambda request, allow_aws_source=False: original(request, allow_aws_source or request.get("ofAws", False))


edit(eventbridge, "_dispatch_to_lambda", (
    "    threading.Thread(\n"
    "        target=lambda_svc._execute_function_with_config_scope, args=(exec_record, event), daemon=True\n"
    "    ).start()\n",
    "    lambda_svc.invoke_async_with_retry(exec_record, event)\n",
))


# CloudWatch Logs

events_so_far = itertools.count()


@wrap(logs, "_append_log_events")
def _(original):
    # Those that Lambda writes have none.
    return lambda stream, events: original(stream, [{"eventId": f"{next(events_so_far):056}", **event} for event in events])


# CloudFormation

@wrap(handlers, "_describe_stacks")
def _(original):
    def describe(params):
        # A stack that a change set has created has none.
        for stack in cloudformation._stacks.values():
            stack["Description"] = (stack.get("_template") or {}).get("Description", "")
        return original(params)
    return describe


# Systems Manager

@wrap(ssm, "_put_parameter")
def _(original):
    def put(request):
        pattern, value = request.get("AllowedPattern"), request.get("Value", "")
        if pattern and not re.search(pattern, value):
            return error("ParameterPatternMismatchException",
                         f"Parameter value, cannot be validated against allowedPattern: {pattern}")
        return original(request)
    return put


if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    app.main()
