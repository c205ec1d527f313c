//! What a runner gets of a request, where only its host, its base and the path matter.

use sandgate::forward::{RequestPlan, RunnerPath, write_request};
use sandgate::head::RequestHead;

pub fn written(head: &RequestHead<'_>, host: &str, base_path: &str, path: &RunnerPath) -> Vec<u8> {
    let plan = RequestPlan {
        host,
        base_path,
        path,
        authorization: "Bearer key",
        strip_authorization: false,
        client_ip: [192, 0, 2, 1].into(),
        trusted_peer: false,
        scheme: "https",
        request_id: "our-id",
    };
    let mut out = Vec::new();
    write_request(head, &plan, &mut out);
    out
}
