//! End-to-end tests: what is deployed to AWS, deployed to one local AWS that all of them share.
//!
//! Each test has a stack of its own, and a prefix of its own at the destination.

mod choosing;
mod copying;
mod credentials;
mod failing;
mod secrets;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Handle;

use crate::world::World;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(&Arc::default(), None)).exit_code();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let world = match runtime.block_on(World::start()) {
        Ok(world) => Arc::new(Some(world)),
        Err(error) => return fail(&error),
    };
    let conclusion = libtest_mimic::run(&arguments, trials(&world, Some(runtime.handle())));
    if let Some(world) = Arc::into_inner(world).flatten() {
        runtime.block_on(world.stop());
    }
    conclusion.exit_code()
}

fn trials(world: &Arc<Option<World>>, runtime: Option<&Handle>) -> Vec<Trial> {
    macro_rules! trials {
        ($($module:ident::$name:ident),* $(,)?) => {
            vec![$({
                let world = Arc::clone(world);
                let runtime = runtime.cloned();
                Trial::test(stringify!($name), move || match (world.as_ref(), runtime) {
                    (Some(world), Some(runtime)) => runtime.block_on($module::$name(world)).map_err(Failed::from),
                    _ => Err("the local AWS is not running".into()),
                })
            }),*]
        };
    }
    trials![
        copying::all_of_an_ecr_registry_is_copied_across_accounts_and_regions,
        copying::no_call_is_denied_in_a_run_that_succeeds,
        copying::a_second_run_copies_nothing_and_starts_no_task,
        copying::selected_public_images_and_all_tags_are_copied,
        choosing::patterns_platforms_and_names_are_as_asked_for_and_a_dry_run_says_so_before,
        choosing::an_execution_that_finds_an_earlier_one_running_ends_at_once,
        choosing::a_listing_that_is_too_short_fails_the_run,
        credentials::an_access_key_may_be_in_the_parameter_store,
        credentials::a_role_is_assumed_with_its_external_id,
        credentials::a_private_registry_gets_its_own_login_and_no_other_registry_does,
        failing::a_missing_image_is_recorded_as_an_error_while_the_others_are_done,
        failing::a_list_with_a_wrong_entry_fails_the_run_naming_it,
        failing::a_task_that_is_killed_while_it_copies_is_retried_and_ends_done,
        failing::a_permission_that_is_taken_away_fails_the_run_and_says_so,
        secrets::no_credential_is_in_a_command_line_a_log_an_override_a_payload_or_a_table,
    ]
}

#[allow(clippy::print_stderr)] // There is no test yet that could report it.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("the local AWS does not start: {error}");
    ExitCode::FAILURE
}
