//! The frame of every HTML report: one file that needs nothing else and may run nothing.
//!
//! No script, no font, no picture from anywhere: the policy allows the one style sheet, by its hash, and nothing besides.
//! All text passes through `maud`, which escapes it; the only markup taken as it is are our own charts.

use super::chart::{HEAT_LEVELS, Ink};
use super::figures::{Figure, Key};
use base64::Engine as _;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::sync::LazyLock;

static STYLE: LazyLock<String> = LazyLock::new(style);

/// A whole page.
pub fn page(title: &str, header: &Markup, main: &Markup) -> String {
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy =
        format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (title) }
                style { (PreEscaped(STYLE.as_str())) }
            }
            body {
                header { (header) }
                main { (main) }
                footer.quiet { "loadtest " (env!("CARGO_PKG_VERSION")) }
            }
        }
    };
    page.into_string()
}

/// The fixed part and, for each colour that charts use, its look.
fn style() -> String {
    let mut css = String::from(include_str!("style.css"));
    let mut colour = |ink: Ink, value: &str, more: &str| {
        let hex = ink.hex();
        // Writing to a String cannot fail.
        let _ = write!(css, "[stroke=\"{hex}\"]{{stroke:{value}{more}}}[fill=\"{hex}\"]{{fill:{value}}}");
    };
    for n in 0..Ink::SERIES {
        colour(Ink::Series(n), &format!("var(--s{})", n + 1), "");
        colour(Ink::Dashed(n), &format!("var(--s{})", n + 1), ";stroke-dasharray:10 8");
    }
    colour(Ink::Bad, "var(--bad)", "");
    colour(Ink::Band, "var(--band)", "");
    colour(Ink::Axis, "var(--line)", "");
    colour(Ink::Grid, "var(--grid)", "");
    colour(Ink::Text, "var(--quiet)", "");
    for n in 0..Ink::SERIES {
        let colour = format!("var(--s{})", n + 1);
        let _ = write!(css, ".{}{{background:{colour}}}", key_class(Ink::Series(n)));
        let stripes = format!("repeating-linear-gradient(90deg,{colour} 0 .25rem,transparent .25rem .4rem)");
        let _ = write!(
            css,
            ".key .{}{{background:{stripes};height:.2rem;vertical-align:.22rem}}",
            key_class(Ink::Dashed(n))
        );
    }
    let _ = write!(css, ".{}{{background:var(--bad)}}", key_class(Ink::Bad));
    for level in 1..=HEAT_LEVELS {
        let key = key_class(Ink::Heat(level));
        let _ = write!(css, ".heat{level}{{fill:var(--h{level})}}.{key}{{background:var(--h{level})}}");
    }
    css
}

fn key_class(ink: Ink) -> String {
    match ink {
        Ink::Series(n) => format!("k{}", n % Ink::SERIES + 1),
        Ink::Dashed(n) => format!("kd{}", n % Ink::SERIES + 1),
        Ink::Heat(level) => format!("kh{level}"),
        _ => "kbad".into(),
    }
}

/// A chart with heading, legend and a line below it.
pub fn figure(heading: &str, figure: &Figure<'_>, caption: &str) -> Markup {
    html! {
        figure {
            div.head {
                h3 { (heading) }
                @for key in &figure.keys { (legend(key)) }
            }
            div.scroll { (PreEscaped(&figure.svg)) }
            @if !caption.is_empty() { figcaption { (caption) } }
        }
    }
}

fn legend(key: &Key<'_>) -> Markup {
    html! { span.key { i class=(key_class(key.ink)) {} (key.name) } }
}

/// A figure with a word above and one below it.
pub fn card(name: &str, value: &str, more: &str) -> Markup {
    html! { div.card { small { (name) } b { (value) } small { (more) } } }
}

pub fn bad_card(name: &str, value: &str, more: &str) -> Markup {
    html! { div.card.bad { small { (name) } b { (value) } small { (more) } } }
}

/// A share as a bar, for a table's cell.
pub fn bar(share: f64) -> Markup {
    let width = format!("{:.2}", share.clamp(0.0, 1.0) * 100.0);
    html! {
        svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
            rect.bar-back width="100" height="10" rx="2" {}
            rect.bar width=(width) height="10" rx="2" {}
        }
    }
}
