//! The few things of the API's answers this gate needs. Everything else may come, go or change its shape.
//!
//! Errors say where the JSON is wrong and never what it holds: runner objects carry keys.

use crate::control::login::settings::ApiOidc;
use crate::control::object::Object;
use crate::route::BuildLogsOf;
use serde::Deserialize;

/// Longest snapshot reference in bytes.
const REF_MAX: usize = 1024;

/// No `Debug`: holds a key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerFields {
    /// Where sandbox traffic goes.
    pub proxy_url: Option<String>,
    /// Where build logs are.
    pub api_url: Option<String>,
    pub api_key: Option<String>,
}

/// Where the log of a build is.
pub struct Build {
    pub snapshot_ref: String,
    /// Of UUID characters only: it is put into a path.
    pub runner_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SandboxFields {
    build_info: Option<Object<BuildInfoFields>>,
    runner_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildInfoFields {
    snapshot_ref: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotFields {
    #[serde(rename = "ref")]
    reference: Option<String>,
    initial_runner_id: Option<String>,
}

/// Nothing but the two words: a wrong base URL is answered with a web page and 200.
pub fn yes_or_no(body: &[u8]) -> Result<bool, &'static str> {
    match body.trim_ascii() {
        b"true" => Ok(true),
        b"false" => Ok(false),
        _ => Err("a 200 whose body is neither true nor false; does DAYTONA_API_URL end with /api?"),
    }
}

/// The part of `/config` that is about login.
pub fn login_settings(body: &[u8]) -> Result<ApiOidc, String> {
    #[derive(Deserialize)]
    struct ConfigFields {
        oidc: Option<Object<ApiOidc>>,
    }
    object::<ConfigFields>(body).map(|config| config.oidc.unwrap_or_default().0)
}

pub fn runner(body: &[u8]) -> Result<RunnerFields, String> {
    object(body)
}

/// `None` when nothing was built, or nowhere yet.
pub fn build(of: &BuildLogsOf, body: &[u8]) -> Result<Option<Build>, String> {
    let (snapshot_ref, runner_id) = match of {
        BuildLogsOf::Sandbox(_) => {
            let SandboxFields { build_info, runner_id } = object(body)?;
            (build_info.and_then(|Object(info)| info.snapshot_ref), runner_id)
        }
        BuildLogsOf::Snapshot(_) => {
            let SnapshotFields { reference, initial_runner_id } = object(body)?;
            (reference, initial_runner_id)
        }
    };
    let given = |text: &String| !text.is_empty();
    let (Some(snapshot_ref), Some(runner_id)) = (snapshot_ref.filter(given), runner_id.filter(given)) else {
        return Ok(None);
    };
    if runner_id.len() != 36 || !runner_id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err("a runner id that is no UUID".to_owned());
    }
    if snapshot_ref.len() > REF_MAX {
        return Err(format!("a snapshot reference of more than {REF_MAX} bytes"));
    }
    Ok(Some(Build { snapshot_ref, runner_id }))
}

/// Delay seconds of `Retry-After` (RFC 9110 10.2.3); its date form is not read.
pub fn retry_after(value: &[u8]) -> Option<u32> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

fn object<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    // A derived struct would also take an array of its fields.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("a 200 whose body is not a JSON object; does DAYTONA_API_URL end with /api?".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| {
        // The error's own text may quote the value.
        let kind = match error.classify() {
            serde_json::error::Category::Data => "a field of an unexpected type",
            _ => "broken JSON",
        };
        format!("{kind} at line {} column {}", error.line(), error.column())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SandboxId;

    #[test]
    fn a_runner_is_read_whatever_else_its_object_holds() {
        let body =
            br#" {"id":1,"proxyUrl":null,"apiUrl":"http://a","apiKey":"k","tags":[{}],"new":{"deep":[1]}}"#;
        let fields = runner(body).expect("tolerant");
        assert_eq!((fields.proxy_url, fields.api_url.as_deref()), (None, Some("http://a")));
        assert_eq!(fields.api_key.as_deref(), Some("k"));
    }

    #[test]
    fn errors_do_not_quote_what_they_are_about() {
        for body in [
            &br#"{"apiKey":["canary"]}"#[..],
            br#"{"apiKey":"canary"#,
            br#"{"apiKey":"canary","apiKey":"canary"}"#,
            br#"["canary","canary","canary"]"#,
            b"\"canary\"",
            b"<html>canary",
            b"",
        ] {
            let error = runner(body).err().expect("not a runner");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn a_build_needs_a_reference_and_a_runner() {
        let sandbox = BuildLogsOf::Sandbox(SandboxId::parse(b"s").expect("an id"));
        let snapshot = BuildLogsOf::Snapshot("s".into());
        let uuid = "0b2f4d6e-0000-4000-8000-00000000000A";
        let read = |of: &BuildLogsOf, body: String| {
            build(of, body.as_bytes()).map(|found| found.map(|b| (b.snapshot_ref, b.runner_id)))
        };
        let found = Ok(Some(("r/x:1".to_owned(), uuid.to_owned())));
        let body = format!(r#"{{"buildInfo":{{"snapshotRef":"r/x:1"}},"runnerId":"{uuid}"}}"#);
        assert_eq!(read(&sandbox, body), found);
        assert_eq!(read(&snapshot, format!(r#"{{"ref":"r/x:1","initialRunnerId":"{uuid}"}}"#)), found);
        for nothing in [
            "{}".to_owned(),
            r#"{"buildInfo":null,"runnerId":null}"#.to_owned(),
            r#"{"buildInfo":{"snapshotRef":"r"},"runnerId":null}"#.to_owned(),
            format!(r#"{{"buildInfo":{{}},"runnerId":"{uuid}"}}"#),
            format!(r#"{{"buildInfo":{{"snapshotRef":""}},"runnerId":"{uuid}"}}"#),
        ] {
            assert_eq!(read(&sandbox, nothing.clone()), Ok(None), "{nothing}");
        }
        let unnamed = format!(r#"{{"buildInfo":["r"],"runnerId":"{uuid}"}}"#);
        assert!(read(&sandbox, unnamed).is_err());
        assert!(login_settings(br#"{"oidc":["https://idp.test","client","audience"]}"#).is_err());
        let climbing = r#"{"ref":"r","initialRunnerId":"../../../../../admin/everything/xxxx"}"#;
        assert!(read(&snapshot, climbing.to_owned()).is_err());
        let long = format!(r#"{{"ref":"{}","initialRunnerId":"{uuid}"}}"#, "r".repeat(REF_MAX + 1));
        assert!(read(&snapshot, long).is_err());
    }
}
