//! Tests of a queue on disk and one in memory: the keys that need a directory, and the keys that
//! exclude a directory.

use std::path::PathBuf;

use super::{LISTENER, OUTPUT, assert_problems, checked, config, files};
use crate::TYPES;
use config::*;

#[test]
fn what_200_means_follows_from_where_the_queue_is() {
    const MEMORY: &str = "needs queue.directory, allowed without it: \"queued\", \"delivered\"";
    const DISK: &str = "conflicts with queue.directory, allowed with it: \"synced\"";
    for (directory, word, expected) in [
        ("", "queued", Ok(Acknowledge::Queued)),
        ("", "delivered", Ok(Acknowledge::Delivered)),
        ("", "synced", Err(MEMORY)),
        ("directory = '/no'\n", "queued", Err(DISK)),
        ("directory = '/no'\n", "delivered", Err(DISK)),
        ("directory = '/no'\n", "synced", Ok(Acknowledge::Synced)),
    ] {
        let text = format!("[queue]\nacknowledge = '{word}'\n{directory}");
        match expected {
            Ok(acknowledge) => assert_eq!(config(&text).queue.acknowledge, acknowledge),
            Err(why) => assert_problems(&text, &format!("2:15: queue.acknowledge: {why}")),
        }
    }
    // Only `acknowledge` is reported: with "synced", the other keys would be right.
    assert_problems(
        "[queue]\ndirectory = '/no'\nacknowledge = 'delivered'\nwhen_full = 'drop_oldest'\n\
         delivered_timeout = '1s'\n[[output]]\nname = 'a'\ntype = 'tcp'\naddresses = ['a:1']\n",
        "3:15: queue.acknowledge: conflicts with queue.directory",
    );
    assert_problems(
        "[queue]\ndirectory = '/no'\nacknowledge = 'synched'\n",
        r#"3:15: queue.acknowledge: "synched" is unknown, did you mean "synced"?"#,
    );
}

#[test]
fn the_variable_that_overrides_ephemeral_is_true_or_false_and_nothing_else() {
    const SET: &str = "[queue]\ndirectory = '/no'\nephemeral = true\n";
    let read = |text: &str, value: Option<&str>| {
        let env = |name: &str| {
            value.filter(|_| name == "KUBE_AUDIT_FORWARDER_EPHEMERAL").map(str::to_owned)
        };
        read_with(&format!("{text}{LISTENER}{OUTPUT}"), TYPES, &env)
    };
    for (value, expected) in
        [(None, true), (Some(""), true), (Some("true"), true), (Some("false"), false)]
    {
        let checked = read(SET, value);
        assert_eq!(checked.problems, [], "{value:?}");
        assert_eq!(checked.config.unwrap().queue.ephemeral, expected, "{value:?}");
    }
    for wrong in ["TRUE", "1", "yes", " true", "true\n"] {
        for (text, place) in [(SET, "3:13"), ("[queue]\ndirectory = '/no'\n", "1:1"), ("", "1:1")] {
            let checked = read(text, Some(wrong));
            assert!(checked.config.is_none(), "{wrong:?}");
            let [problem] = &checked.problems[..] else { panic!("{:?}", checked.problems) };
            let expected = format!(
                "{place}: queue.ephemeral: is overridden by the environment variable \
                 KUBE_AUDIT_FORWARDER_EPHEMERAL, whose value is neither true nor false: set the \
                 variable to one of these, or remove it"
            );
            assert_eq!(problem.render("f"), format!("f:{expected}"), "{wrong:?}");
        }
    }
}

#[test]
fn a_directory_that_is_none_is_one_problem() {
    let dir = files();
    let dir = dir.path().display();
    for (directory, expected) in [
        ("''", "\"\" is empty, allowed: the path of a directory".to_owned()),
        ("'${env:NO:-}'", "\"${env:NO:-}\" is empty".to_owned()),
        ("'${env:NO}'", "the variable NO is not set".to_owned()),
        ("1", "is an integer, allowed: a path".to_owned()),
        (&format!("'{dir}/crt'"), format!("\"{dir}/crt\" is a file, allowed: a directory")),
        ("'${file:/no}'", "warning: the file \"/no\" does not exist".to_owned()),
    ] {
        let text = format!(
            "[queue]\nmax_bytes = '1GiB'\ndirectory = {directory}\nacknowledge = 'synced'\nsegment_bytes = '16KiB'\n"
        );
        assert_problems(&text, &format!("3:13: queue.directory: {expected}"));
    }
    // A value that is not TOML may have been the directory, so no other problem is derived from its
    // absence.
    assert_problems(
        "[queue]\ndirectory = /no\nacknowledge = 'synced'\nsegment_bytes = '16KiB'\n",
        "2:13: not TOML: ",
    );
    for directory in [&dir.to_string(), "relative/to.here", "/no"] {
        let checked = checked(&format!("[queue]\ndirectory = '{directory}'\n"));
        assert_eq!(checked.files, [] as [PathBuf; 0]);
        let config = checked.config.unwrap();
        assert_eq!(config.queue.directory, Some(PathBuf::from(directory)));
    }
}

#[test]
fn a_queue_on_disk_has_room_for_a_few_files() {
    let disk = "[queue]\ndirectory = '/no'\n";
    assert_problems(
        &format!("[limits]\nmax_body = '1KiB'\n{disk}max_bytes = 262143\n"),
        "5:13: queue.max_bytes: is too small with queue.directory, allowed: at least 256KiB",
    );
    // Only the size is reported; the limits that follow from the size are not.
    assert_problems(
        &format!("{disk}max_bytes = '2KiB'\nsegment_bytes = '1MiB'\n"),
        "3:13: queue.max_bytes: is too small with queue.directory",
    );
    assert_problems(
        &format!("{disk}max_bytes = 'lots'\nsegment_bytes = '1GiB'\n"),
        r#"3:13: queue.max_bytes: "lots" is not a size"#,
    );
    assert_problems(
        &format!("{disk}segment_bytes = 67108865\n"),
        "3:17: queue.segment_bytes: is larger than queue.max_bytes / 4, allowed: at most 64MiB",
    );
    assert_problems(
        &format!("{disk}segment_bytes = 16383\n"),
        "3:17: queue.segment_bytes: 16383 is out of range, allowed: at least 16KiB",
    );
    let body = "[limits]\nmax_body = '1KiB'\n";
    for (max_bytes, segment_bytes) in
        [("'256KiB'", 64 << 10), ("'256MiB'", 64 << 20), ("'1GiB'", 64 << 20), ("300001", 75_000)]
    {
        let default = config(&format!("{body}{disk}max_bytes = {max_bytes}\n"));
        assert_eq!(default.queue.segment_bytes, segment_bytes, "{max_bytes}");
    }
    let largest = config(&format!("{disk}max_bytes = '1GiB'\nsegment_bytes = '256MiB'\n"));
    assert_eq!(largest.queue.segment_bytes, 256 << 20);
}

#[test]
fn without_a_directory_the_size_of_its_files_is_none() {
    assert_problems(
        "[queue]\nsegment_bytes = '16KiB'\n",
        "2:17: queue.segment_bytes: needs queue.directory: set that key, or remove this one",
    );
    assert_problems(
        "[queue]\nsegment_bytes = true\n",
        "2:17: queue.segment_bytes: is a boolean, allowed: a size",
    );
    assert_problems(
        "[queue]\nmax_bytes = true\nsegment_bytes = '16KiB'\n",
        "2:13: queue.max_bytes: is a boolean",
    );
    config("[queue]\nsegment_bytes = '64MiB'\n");
    config("[limits]\nmax_body = '1KiB'\n[queue]\nmax_bytes = '2KiB'\nsegment_bytes = 512\n");
}

#[test]
fn a_queue_on_disk_has_defaults_of_its_own() {
    for (max_bytes, segment_bytes) in [
        ("\"256MiB\"", "\"64MiB\""),
        ("\"128MiB\"", "\"32MiB\""),
        ("150000001", "37500000"),
        ("\"1GiB\"", "\"64MiB\""),
    ] {
        let directory = "directory = \"/no/${env:HOST}\"\n";
        let first = checked(&format!("[queue]\nmax_bytes = {max_bytes}\n{directory}"));
        let second = checked(&first.effective());
        assert_eq!(first.problems, [], "{max_bytes}");
        assert!(first.config.is_some());
        assert_eq!(first.config, second.config);
        assert_eq!(first.effective(), second.effective());
        let expected = format!(
            r#"[queue]
max_bytes = {max_bytes}
{directory}ephemeral = false
acknowledge = "synced"
delivered_timeout = "25s"
when_full = "reject"
retry_after = "5s"
segment_bytes = {segment_bytes}

"#
        );
        assert!(first.effective().contains(&expected), "{expected}{}", first.effective());
    }
}

/// The default of `rejected.after_server_errors`, and the warning about a long one, depend on
/// whether a sender waits for the output.
#[test]
fn an_event_that_a_sender_waits_for_is_decided_in_three_minutes() {
    let listener = "[[listener]]\naddress = '127.0.0.1:1'\n";
    // This text names a listener, so that no listener is added to it.
    let source = "# no listener\n[[source]]\nname = 's'\ntype = 'kafka'\nbrokers = ['a:1']\n\
                  topic = 't'\ngroup = 'g'\n";
    let output = |required: bool, keys: &str| {
        format!("[[output]]\nname = 'a'\ntype = 'stdout'\nrequired = {required}\n{keys}")
    };
    let other = "[[output]]\nname = 'b'\ntype = 'lumberjack'\naddresses = ['a:1']\n";
    for (input, acknowledge, required, seconds) in [
        (listener, "delivered", true, 45),
        (listener, "delivered", false, 3600),
        (listener, "queued", true, 3600),
        (source, "delivered", true, 3600),
    ] {
        if input == source && !cfg!(feature = "kafka") {
            continue;
        }
        let queue = format!("{input}[queue]\nacknowledge = '{acknowledge}'\n");
        let read = |keys: &str| checked(&format!("{queue}{}{other}", output(required, keys)));
        let shown = |text: &str| {
            let first = read(text);
            let after = first.config.as_ref().map(|it| it.outputs[0].after_server_errors);
            (after.map(|it| it.as_secs()), first)
        };
        let (after, first) = shown("");
        assert_eq!((after, &first.problems[..]), (Some(seconds), &[][..]), "{queue}");
        assert_eq!(read_with(&first.effective(), TYPES, &super::env).config, first.config);
        for (keys, warns) in [
            ("rejected.after_server_errors = '181s'\n", true),
            ("rejected.after_server_errors = '3m'\n", false),
            ("rejected = { after_server_errors = '4m', action = 'retry' }\n", false),
        ] {
            let (after, first) = shown(keys);
            assert!(after > Some(179), "{after:?}");
            let problems: Vec<_> = first.problems.iter().map(|it| it.render("f")).collect();
            let is_long = |text: &String| {
                text.contains(
                    ": output[0].rejected.after_server_errors: warning: is longer than 3m",
                )
            };
            assert_eq!(problems.len(), usize::from(warns && seconds == 45), "{problems:?}");
            assert!(problems.iter().all(is_long), "{problems:?}");
        }
    }
}
