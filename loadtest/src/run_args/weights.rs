//! Lists with weights: kinds of credentials, classes of requests.

use crate::har::{Recording, Recordings};
use crate::plan::Class;
use crate::population::AuthKind;
use crate::quantity;
use crate::unshown::shown_url;

#[derive(Clone, Debug)]
pub struct Auth(pub(super) Vec<(AuthKind, f64)>);
#[derive(Clone, Debug)]
pub struct Mix {
    pub(super) classes: Vec<(Class, f64)>,
    pub(super) recordings: Vec<Recording>,
}

/// A list of kinds of credentials with weights.
pub fn auth_weights(text: &str) -> Result<Vec<(AuthKind, f64)>, String> {
    quantity::weights(text, |name| {
        let kind = AuthKind::ALL.into_iter().find(|kind| kind.as_str() == name);
        kind.ok_or_else(|| format!("`{name}`: one of public, token, bearer, query, cookie, signed"))
    })
}

pub(super) fn auth(text: &str) -> Result<Auth, String> {
    auth_weights(text).map(Auth)
}

/// A list of classes with weights. A class has a colon of its own, so the weight follows an equals sign.
pub fn mix_weights(text: &str, recordings: &mut Recordings) -> Result<Vec<(Class, f64)>, String> {
    let pair = |part: &str| {
        let (class, weight) = part.rsplit_once('=').unwrap_or((part, "1"));
        match weight.parse::<f64>() {
            Ok(weight) if weight > 0.0 && weight.is_finite() => {
                Ok((recordings.class_of(class.trim())?, weight))
            }
            _ => Err(format!(
                "`{}`: the weight behind = is no number above 0 (a = of a query needs one, too: path:/x?a=b=1)",
                shown_url(class)
            )),
        }
    };
    text.split(',').map(pair).collect()
}

pub(super) fn mix(text: &str) -> Result<Mix, String> {
    let mut recordings = Recordings::default();
    let classes = mix_weights(text, &mut recordings)?;
    Ok(Mix { classes, recordings: recordings.into_plan() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_keep_the_colons_of_their_classes() {
        let mix_weights = |text| mix_weights(text, &mut Recordings::default());
        let mix = mix_weights("get:1k=90,ws:10x32=9,path:/a?b=c=1").expect("a mix");
        let names: Vec<_> = mix.iter().map(|(class, weight)| (class.to_string(), *weight)).collect();
        assert_eq!(names, [("get:1k".into(), 90.0), ("ws:10x32".into(), 9.0), ("path:/a?b=c".into(), 1.0)]);
        assert!(mix_weights("get:1k=0").is_err() && mix_weights("get:1k=x").is_err());
        let error = mix_weights("get:1k=1,har:absent.har=1").expect_err("no such file");
        assert!(error.starts_with("har:absent.har: ") && error.contains("No such file"), "{error}");
        assert!(mix_weights("har:=1").is_err());
    }
}
