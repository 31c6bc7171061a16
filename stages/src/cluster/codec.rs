//! Serialization of an application's own plan nodes, by the registry of an executor.

use std::sync::Arc;

use datafusion::{error::Result, execution::TaskContext, physical_plan::ExecutionPlan};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use gatework_runtime::Executor;
use gatework_sql::nodes::{decode_node, encode_node};

/// The codec of the node types that are registered with an executor.
#[derive(Debug)]
pub(super) struct NodeCodec(pub(super) Executor);

impl PhysicalExtensionCodec for NodeCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        decode_node(&self.0, bytes, inputs.to_vec(), context)
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        bytes.extend(encode_node(&self.0, node.as_ref())?);
        Ok(())
    }
}
