//! One task on an executor, without a scheduler.

use std::{sync::Arc, thread, time::Duration};

use gatework_runtime::Executor;
use gatework_shared_state::{
    BufferLimit,
    output::{OutputBuffer, OutputBuffers, OutputState},
};

use super::{session, stages};
use crate::{
    TaskEvents, TaskFactory, TaskId, TaskSpec,
    run::local::{LocalTaskFactory, TaskEnvironment},
};

/// A task may need nothing of a stage and end before that stage starts. Producers for it must not
/// wait.
#[tokio::test]
async fn a_reader_that_has_ended_leaves_the_outputs_that_come() {
    let plan = stages("SELECT k, count(*) FROM large GROUP BY k").await.unwrap();
    let environment = TaskEnvironment {
        context: session().task_ctx(),
        output_buffer_bytes: 100,
        max_queued_splits: 1,
        filters: None,
    };
    let tasks = LocalTaskFactory {
        nodes: vec![Executor::builder().threads(1).build().unwrap()],
        environment: Arc::new(environment),
        tasks: Arc::default(),
        external_work: Box::new(|| None),
    };
    let fragment = &plan.children[0].fragment;
    let buffers = OutputBuffers::with_partitions(1);
    let spec = TaskSpec { id: TaskId { stage: 1, index: 0 }, node: 0, fragment, buffers: &buffers };
    let task = tasks.create(&spec, &Arc::new(TaskEvents::default())).unwrap();
    let output = || {
        let budget = BufferLimit::new(100);
        OutputBuffer::new("writer", OutputBuffers::with_partitions(1), budget, 1).unwrap()
    };
    let ((before, _writes), (after, _writes_too)) = (output(), output());
    task.add_location(0, 1, &before).unwrap();
    assert_eq!(before.state(), OutputState::NoMoreBuffers, "it is read");
    task.cancel();
    while task.running_lifespans() > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    task.add_location(0, 2, &after).unwrap();
    assert_eq!((before.state(), after.state()), (OutputState::Finished, OutputState::Finished));
}
