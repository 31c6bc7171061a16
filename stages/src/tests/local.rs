//! One task on an executor, without those who would schedule it.

use std::{sync::Arc, thread, time::Duration};

use gatework_runtime::Executor;
use gatework_shared_state::{
    Budget,
    output::{Output, OutputBuffers, OutputState},
};

use super::{session, stages};
use crate::{
    Inbox, TaskFactory, TaskId, TaskSpec,
    local::{LocalTasks, Setting},
};

/// A task may need nothing of a stage and end before that begins. Whoever writes for it is not to wait.
#[tokio::test]
async fn a_reader_that_has_ended_leaves_the_outputs_that_come() {
    let plan = stages("SELECT k, count(*) FROM large GROUP BY k").await.unwrap();
    let setting = Setting {
        context: session().task_ctx(),
        buffer_bytes: 100,
        queued_splits: 1,
        filters: None,
    };
    let tasks = LocalTasks {
        nodes: vec![Executor::builder().threads(1).build().unwrap()],
        setting: Arc::new(setting),
        roster: Arc::default(),
        presence: Box::new(|| None),
    };
    let fragment = &plan.children[0].fragment;
    let buffers = OutputBuffers::of_partitions(1);
    let spec =
        TaskSpec { id: TaskId { stage: 1, number: 0 }, node: 0, fragment, buffers: &buffers };
    let task = tasks.create(&spec, &Arc::new(Inbox::default())).unwrap();
    let output = || {
        let budget = Budget::new(100);
        Output::new("writer", OutputBuffers::of_partitions(1), budget, 1).unwrap()
    };
    let ((before, _writes), (after, _writes_too)) = (output(), output());
    task.add_location(0, 1, &before).unwrap();
    assert_eq!(before.state(), OutputState::NoMoreBuffers, "it is read");
    task.cancel();
    while task.running_groups() > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    task.add_location(0, 2, &after).unwrap();
    assert_eq!((before.state(), after.state()), (OutputState::Finished, OutputState::Finished));
}
