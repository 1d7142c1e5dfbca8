//! End-to-end tests: what is deployed to AWS, deployed to one local AWS that all of them share.
//!
//! Each test has a stack of its own, and a prefix of its own at the destination.

mod choosing;
mod command;
mod comparing;
mod copying;
mod credentials;
mod failing;
mod hostile;
mod mirror;
mod operating;
mod permissions;
mod script;
mod secrets;
mod tasks;
mod trust;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Handle;

use crate::world::World;

fn main() -> ExitCode {
    // Tests run the command in a process of its own: this program.
    if std::env::var_os(command::IS_COMMAND).is_some() {
        return cli::main();
    }
    let mut arguments = Arguments::from_args();
    // Most of a test is waiting.
    arguments.test_threads.get_or_insert(4);
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(&Arc::default(), None)).exit_code();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let world = match runtime.block_on(World::start()) {
        Ok(world) => Arc::new(Some(world)),
        Err(error) => return fail(&*error),
    };
    let mut conclusion = libtest_mimic::run(&arguments, trials(&world, Some(runtime.handle())));
    // What all tests together have used can only be known after them.
    if arguments.filter.is_none() && !conclusion.has_failed() {
        conclusion = libtest_mimic::run(&arguments, last(&world, runtime.handle()));
    }
    if let Some(world) = Arc::into_inner(world).flatten() {
        runtime.block_on(world.stop());
    }
    conclusion.exit_code()
}

macro_rules! trials {
    ($world:expr, $runtime:expr, $($module:ident::$name:ident),* $(,)?) => {
        vec![$({
            let world = Arc::clone($world);
            let runtime = $runtime.cloned();
            Trial::test(stringify!($name), move || match (world.as_ref(), runtime) {
                (Some(world), Some(runtime)) => runtime.block_on($module::$name(world)).map_err(Failed::from),
                _ => Err("the local AWS is not running".into()),
            })
        }),*]
    };
}

fn last(world: &Arc<Option<World>>, runtime: &Handle) -> Vec<Trial> {
    trials![world, Some(runtime), permissions::every_permission_is_used]
}

fn trials(world: &Arc<Option<World>>, runtime: Option<&Handle>) -> Vec<Trial> {
    trials![
        world,
        runtime,
        // First, because it mostly waits for registries that do not answer.
        hostile::a_hostile_registry_costs_its_own_images_and_nothing_else,
        hostile::an_image_pinned_by_digest_brings_nothing_else_from_a_hostile_registry,
        copying::all_of_an_ecr_registry_is_copied_across_accounts_and_regions,
        copying::no_call_is_denied_in_a_run_that_succeeds,
        copying::a_second_run_copies_nothing_and_starts_no_task,
        copying::selected_public_images_and_all_tags_are_copied,
        mirror::copies_are_mirrored_at_once_for_the_user_that_the_page_describes,
        mirror::a_rewritten_task_definition_can_be_pulled,
        mirror::the_webhooks_image_is_pushed_by_the_user_that_the_page_describes,
        copying::tags_that_change_in_an_ecr_registry_are_followed,
        copying::tags_that_change_in_a_public_registry_are_followed,
        copying::a_new_repository_is_created_as_asked_for,
        choosing::patterns_platforms_and_names_are_as_asked_for_and_a_dry_run_says_so_before,
        choosing::an_execution_waits_for_an_earlier_one_and_a_third_leaves_it_to_the_second,
        choosing::a_listing_that_is_too_short_fails_the_run,
        credentials::an_access_key_may_be_in_the_parameter_store,
        credentials::a_role_is_assumed_with_its_external_id,
        credentials::a_destination_in_another_account_takes_images_from_the_user_that_the_guide_describes,
        credentials::a_private_registry_gets_its_own_login_and_no_other_registry_does,
        failing::an_event_that_never_comes_costs_time_and_no_image_and_changes_nothing_when_it_does,
        failing::an_execution_that_is_stopped_stops_its_tasks_and_the_next_one_heals,
        failing::an_execution_that_nothing_can_catch_is_told_of,
        failing::a_failed_row_heals,
        failing::an_event_that_comes_twice_changes_nothing,
        failing::a_task_that_is_killed_before_it_starts_or_after_its_work_is_done_costs_no_image,
        failing::a_task_that_never_starts_is_an_error_that_says_why,
        failing::a_launch_that_dies_when_it_has_started_a_task_leaves_no_second_one_behind,
        failing::an_image_that_arrives_otherwise_than_it_left_is_an_error_and_the_next_run_heals,
        failing::a_login_that_expires_while_images_are_copied_costs_another_try,
        failing::a_network_that_fails_now_and_then_costs_no_image,
        failing::a_plan_that_cannot_be_written_fails_the_run_and_says_so,
        failing::a_batch_that_is_recorded_twice_counts_once,
        failing::a_repository_that_cannot_be_created_costs_no_other_one,
        failing::a_missing_image_is_recorded_as_an_error_while_the_others_are_done,
        failing::a_list_with_a_wrong_entry_fails_the_run_naming_it,
        failing::a_task_that_is_killed_while_it_copies_is_retried_and_ends_done,
        failing::a_permission_that_is_taken_away_fails_the_run_and_says_so,
        operating::a_stacks_name_works_or_is_refused_with_a_reason,
        operating::images_that_are_pushed_are_copied_by_one_run_that_starts_with_the_next_minute,
        operating::a_published_template_takes_data_transfer_hubs_command_and_runs_as_soon_as_it_is_deployed,
        operating::parameters_that_contradict_each_other_are_refused_at_deployment,
        operating::an_update_keeps_the_history_and_a_deletion_keeps_what_it_was_told_to,
        operating::the_check_for_an_aws_account_passes_on_this_machine,
        operating::a_stack_has_alarms_and_a_dashboard,
        script::the_script_copies_every_kind_of_image_and_leaves_nothing_behind,
        script::the_script_goes_on_past_an_image_that_is_missing,
        script::the_script_copies_as_many_images_at_a_time_as_it_is_told_to,
        script::the_script_brings_no_more_manifests_to_its_destination_than_it_is_told_to,
        script::the_script_gets_over_faults_of_the_network,
        script::the_script_ends_at_once_when_it_is_terminated,
        script::the_script_says_that_it_was_refused_where_it_has_no_login,
        script::the_script_uploads_what_images_share_once,
        script::the_script_shows_the_logins_to_nobody_else,
        tasks::a_task_is_created_cloned_changed_paused_and_deleted,
        tasks::a_dry_run_says_what_a_run_would_copy_and_why,
        tasks::a_slow_run_is_stopped_and_its_tasks_end,
        tasks::failed_images_and_logs_are_found,
        tasks::a_task_is_deleted_while_a_run_is_active,
        tasks::a_stack_of_somebody_else_is_not_deleted,
        tasks::a_viewer_sees_everything_and_an_operator_also_starts_and_stops,
        trust::a_repository_takes_images_of_one_source_only,
        trust::what_a_stack_does_not_allow_is_refused_before_anything_is_started,
        trust::a_password_that_names_no_registry_serves_the_only_one_of_the_deployed_list,
        trust::what_a_signature_policy_does_not_accept_is_not_copied,
        secrets::no_credential_is_in_a_command_line_a_log_an_override_a_payload_or_a_table,
    ]
}

#[allow(clippy::print_stderr)] // There is no test yet that could report it.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("the local AWS does not start: {error}");
    ExitCode::FAILURE
}
