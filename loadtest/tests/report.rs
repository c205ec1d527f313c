//! Reports of results that are known beforehand: what other tools and browsers get to read.

mod synthetic;

use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use loadtest::report::{self, Outputs};
use loadtest::result::{
    ChurnResult, ClassResult, ErrorCount, Hist, IdleResult, Reason, RunResult, Search, SearchStep,
};
use std::collections::BTreeMap;
use synthetic::{Recipe, run};

/// A result in which everything that can be shown is there.
fn full() -> RunResult {
    let mut result = run(&Recipe { errors: 0.01, ..Recipe::default() });
    let phase = &mut result.phases[1];
    phase.timeline.points[10].backlog = 100;
    phase.timeline.points.iter_mut().for_each(|point| point.idle = 998);
    phase.churn.push(ChurnResult {
        name: "restart runner".into(),
        at_s: 9.5,
        effect_ms: Some(3.0),
        probes: 5,
        ..ChurnResult::default()
    });
    phase.idle = Some(IdleResult { planned: 1000, open: 998, ..IdleResult::default() });
    let class = phase.classes.get_mut("get:1k").expect("the class");
    class.unsent = 3;
    class.extra.entry("connect".into()).or_default().record_ns(80_000);
    let step = SearchStep {
        phase: "1".into(),
        rate: 1000.0,
        achieved: 999.0,
        p99_us: 900.0,
        held: true,
        ..SearchStep::default()
    };
    result.search = Some(Search { bound: "p99<5ms".into(), rate: Some(1000.0), steps: vec![step] });
    result.validity.reasons.push(Reason {
        code: "noise".into(),
        message: "the machine was busy".into(),
        fatal: false,
    });
    let holds = Outputs { assert: vec!["p99<1s,err<0.1%".parse().expect("good")], ..Outputs::default() }
        .finish(&mut result);
    assert_eq!(holds.ok(), Some(false));
    result
}

#[test]
fn an_hlog_reads_back_to_the_same_histograms() {
    let result = full();
    let mut bytes = Vec::new();
    report::write_hlog(&result, &mut bytes).expect("memory takes it");
    let text = std::str::from_utf8(&bytes).expect("text");
    assert!(text.starts_with("#[Histogram log format version 1.3]\n"), "{}", &text[..100]);
    assert!(text.contains("#[StartTime: 1767323045.000 (seconds since epoch)]\n"));
    let mut read = BTreeMap::new();
    for entry in IntervalLogIterator::new(&bytes) {
        if let LogEntry::Interval(interval) = entry.expect("a good line") {
            let encoded = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                interval.encoded_histogram(),
            );
            let histogram: hdrhistogram::Histogram<u64> = Deserializer::new()
                .deserialize(&mut encoded.expect("base64").as_slice())
                .expect("a histogram");
            let tag = interval.tag().expect("a tag").as_str().to_owned();
            assert_eq!(interval.start_timestamp().as_secs(), if tag.starts_with("warmup.") { 0 } else { 2 });
            assert!(
                (interval.max() - histogram.max() as f64 / 1e6).abs() < 0.001,
                "the readable maximum is in ms"
            );
            read.insert(tag, histogram);
        }
    }
    let names: Vec<&str> = read.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "get:1k.connect",
            "get:1k.response",
            "get:1k.service",
            "upload.response",
            "upload.service",
            "warmup.get:1k.response",
            "warmup.get:1k.service",
            "warmup.upload.response",
            "warmup.upload.service",
        ]
    );
    let classes = &result.phases[1].classes;
    assert_eq!(&read["get:1k.response"], classes["get:1k"].response.histogram());
    assert_eq!(&read["upload.service"], classes["upload"].service.histogram());
}

#[test]
fn tags_of_odd_class_names_stay_one_field() {
    let mut result = run(&Recipe { seconds: 1, ..Recipe::default() });
    let class = result.phases[1].classes.remove("upload").expect("the class");
    result.phases[1].classes.insert("a, b\nc".into(), class);
    result.phases[1].name = "x\n#[StartTime: 0".into();
    let mut bytes = Vec::new();
    report::write_hlog(&result, &mut bytes).expect("memory takes it");
    let text = String::from_utf8(bytes).expect("text");
    assert!(text.contains("\nTag=a__b_c.response,") && text.contains("#[phase x #[StartTime: 0]\n"));
}

#[test]
fn a_timeline_is_a_line_for_each_second_with_the_phase_s_name_as_text() {
    let mut result = run(&Recipe { seconds: 3, rate: 50, ..Recipe::default() });
    result.phases[1].name = "=a, \"b\"".into();
    result.phases[1].timeline.points[2].proxy_cpu = None;
    let mut bytes = Vec::new();
    result.phases[1].timeline.points[0].idle = 7;
    result.phases[1].timeline.points[1].heat.fill(0);
    report::write_csv(&result, &mut bytes).expect("memory takes it");
    let text = String::from_utf8(bytes).expect("text");
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    // A head, two seconds of warm-up, three of the phase.
    assert_eq!(lines.len(), 1 + 2 + 3, "{text}");
    let columns = lines[0].split(',').count();
    assert!(
        lines[1].starts_with("\"warm-up\",true,0,1,50,50,50,0,") && lines[1].split(',').count() == columns
    );
    assert!(lines[3].starts_with("\"'=a, \"\"b\"\"\",false,2,1,50,50,50,0,"), "{}", lines[3]);
    assert!(lines[3].ends_with(",7") && lines[4].contains(",,,"), "held idle, and no times: {}", lines[4]);
    assert!(lines[5].ends_with(",,0"), "what was not measured is empty: {}", lines[5]);
}

/// Everything in the page that could make a browser fetch something.
fn references(html: &str) -> Vec<String> {
    let lower = html.to_ascii_lowercase();
    let attributes = [
        " src=",
        " href=",
        " srcset=",
        " action=",
        " data=",
        " poster=",
        " background=",
        " xmlns",
        "url(",
        "@import",
    ];
    let tags =
        ["<script", "<link", "<img", "<iframe", "<object", "<embed", "<base", "<form", "<image", "<use"];
    let found = attributes.iter().chain(&tags).filter(|needle| lower.contains(**needle));
    found.map(|needle| (*needle).to_owned()).collect()
}

#[test]
fn the_page_fetches_nothing_and_its_policy_allows_only_its_own_style() {
    let html = report::html(&full());
    assert_eq!(references(&html), Vec::<String>::new());
    let style = html.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next()).expect("a style");
    let hash = <sha2::Sha256 as sha2::Digest>::digest(style.as_bytes());
    let hash = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, hash);
    let policy = format!(
        "content=\"default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'\""
    );
    assert!(html.contains(&policy), "the policy names the style by its hash");
    assert!(!html.contains(" style=\""), "inline styles would be refused");
    assert!(html.len() < 1_500_000, "{} bytes", html.len());
}

#[test]
fn the_page_shows_every_part_of_a_result() {
    let html = report::html(&full());
    for text in [
        "Thresholds",
        "does not hold",
        "Time by percentile",
        "Requests per second",
        "Response times",
        "Spread of response times",
        "Waiting to be sent",
        "RUNNER_UNREACHABLE",
        "CPU, percent of one core",
        "Bytes per second",
        "spliced",
        "90.0%",
        "Phases",
        "Changes under load",
        "Idle connections",
        "Idle WebSockets held",
        "Highest rate with p99&lt;5ms",
        "the machine was busy",
        "Further times",
        "class=\"heat8\"",
        "class=\"hover\"",
        "never sent",
        "requests per core",
    ] {
        assert!(html.contains(text), "{text}");
    }
}

/// What is between the first of one text and the next of another.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let rest = text.split_once(from).unwrap_or_else(|| panic!("no {from} in {text}")).1;
    rest.split_once(to).unwrap_or_else(|| panic!("no {to} in {rest}")).0
}

/// Every element is closed, in order; what has no end in HTML aside.
fn assert_well_formed(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in html.split('<').skip(1).map(|rest| rest.split('>').next().expect("its end")) {
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
            None if tag.ends_with('/') || ["!DOCTYPE", "meta", "wbr"].contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_page_is_well_formed_and_every_number_in_it_is_one() {
    let mut odd = full();
    for point in &mut odd.phases[1].timeline.points[3..9] {
        (point.heat, point.proxy_cpu, point.client_cpu) = (Vec::new(), None, 0.0);
    }
    odd.phases[1].duration_s = 29.4;
    let mut short = run(&Recipe { seconds: 1, rate: 1, ..Recipe::default() });
    short.phases.remove(0);
    short.server = None;
    for result in [full(), odd, short, RunResult::default()] {
        let html = report::html(&result);
        assert_well_formed(&html);
        let page = between(&html, "</style>", "</html>");
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}

#[test]
fn what_was_never_counted_is_0_bytes() {
    for (path, html_says, markdown_says) in [
        ("splice", "0 B spliced, 0% of all; ", "Bytes spliced: 0%"),
        ("copy", "; 0 B copied.", "copied for each request: 0 B"),
    ] {
        let mut result = full();
        result.server.as_mut().expect("counters").after.retain(|name, _| !name.contains(path));
        let (html, markdown) = (report::html(&result), report::markdown(&result));
        assert!(html.contains(html_says) && markdown.contains(markdown_says), "{path}: {markdown}");
        assert!(!html.contains("-0 B") && !markdown.contains("-0 B"), "{path}");
    }
}

#[test]
fn changes_are_numbered_alike_in_charts_and_table() {
    let mut result = full();
    let change =
        |name: &str, at_s, probes| ChurnResult { name: name.into(), at_s, probes, ..ChurnResult::default() };
    result.phases[1].churn.push(change("<never made>", 12.0, 0));
    result.phases[1].churn.push(change("a & b", 12.5, 3));
    let html = report::html(&result);
    for title in ["<title>1: restart runner, at 11.5 s</title>", "<title>3: a &amp; b, at 14.5 s</title>"] {
        // In each chart over time: rates, times, spread, waiting, CPU, bytes and what is held idle.
        assert_eq!(html.matches(title).count(), 7, "{title}");
    }
    assert_eq!(html.matches("<g class=\"flag\">").count(), 14, "what was not made has no line");
    assert_eq!(html.matches("changes under load, numbered as in their table").count(), 7);
    let table = between(&html, "<h2>Changes under load</h2>", "</table>");
    for row in ["<td class=\"n\">1</td><td>restart runner", "<td class=\"n\">3</td><td>a &amp; b"] {
        assert!(table.contains(row), "{row}: {table}");
    }
    result.phases[1].churn.clear();
    assert!(!report::html(&result).contains("changes under load"), "no legend without a line");
}

#[test]
fn a_heat_map_says_what_its_colours_are() {
    let html = report::html(&full());
    let legend = between(&html, "<h3>Spread of response times</h3>", "<svg");
    // The fullest cell of 500 requests a second spread over some octaves has more than 100 and at most 316.
    assert!(
        legend.contains("<i class=\"kh8\"></i>≤ 316/s") && legend.contains("<i class=\"kh7\"></i>≤ 100/s"),
        "{legend}"
    );
    assert!(html.contains("two colours on are ten times as many") && !html.contains("powers of ten"));
}

#[test]
fn the_command_can_be_given_to_a_shell_again() {
    let mut result = full();
    result.meta.command =
        ["loadtest", "run", "--mix", "get:1k=8,sse=1", "--assert", "p99<5ms"].map(Into::into).into();
    let html = report::html(&result);
    let words: Vec<&str> = between(&html, "<td>command</td><td><code>", "</code>")
        .split("<span class=\"word\">")
        .skip(1)
        .map(|word| word.trim_end().trim_end_matches("</span>"))
        .collect();
    assert_eq!(words, ["loadtest", "run", "--mix", "get:1k=8,sse=1", "--assert", "'p99&lt;5ms'"]);
}

#[test]
fn errors_of_all_are_the_same_everywhere_and_count_idle_websockets() {
    let mut result = full();
    result.search = None;
    let mut connect = Hist::default();
    (0..900).for_each(|_| connect.record_ns(1_000_000));
    let errors = vec![ErrorCount { code: "timeout".into(), source: "network".into(), count: 1500 }];
    let idle = IdleResult { planned: 1000, failed: 1500, lost: 7, connect, errors, ..IdleResult::default() };
    result.phases[1].idle = Some(idle);
    for single in [false, true] {
        if single {
            result.phases[1].classes.remove("upload");
        }
        let (html, markdown) = (report::html(&result), report::markdown(&result));
        let card = between(between(&html, "<small>errors</small>", "</div>"), "<b>", "</b>");
        let row = |row: &str| {
            row.split("<td class=\"n bad\">")
                .nth(1)
                .map(|cell| cell.split("</td>").next().unwrap_or("").to_owned())
        };
        let all = row(between(&html, "<td>all</td>", "</tr>")).expect("a cell of errors");
        let in_markdown = |name: &str| {
            let line = markdown.lines().find(|line| line.starts_with(name)).expect("a row");
            line.split(" | ")
                .find(|cell| cell.contains('%'))
                .expect("a share")
                .trim_end_matches(" |")
                .to_owned()
        };
        let phase = between(&html, "<h2>Phases</h2>", "</table>")
            .split("<td>hold</td><td>hold</td>")
            .nth(1)
            .expect("its row");
        assert!(card.ends_with('%') && card != "1.00%", "{card}");
        assert!(phase.contains(&format!("<td class=\"n\">{card}</td>")), "{phase}");
        assert_eq!(
            (all.as_str(), in_markdown("| **all**"), in_markdown("| hold")),
            (card, card.into(), card.into())
        );
    }
}

#[test]
fn the_classes_with_the_most_requests_have_curves() {
    for (count, told) in
        [(6, None), (7, Some("; 1 more class is in the table only.")), (9, Some("; 3 more classes are in"))]
    {
        let mut result = run(&Recipe { seconds: 1, ..Recipe::default() });
        let classes = &mut result.phases[1].classes;
        classes.clear();
        for n in 0..count {
            let mut class = ClassResult::default();
            (0..10 + n).for_each(|_| class.response.record_ns(1_000_000));
            classes.insert(format!("class-{n}"), class);
        }
        let html = report::html(&result);
        let legend = between(&html, "<h3>Time by percentile</h3>", "<svg");
        let shown: Vec<usize> =
            (0..count).filter(|n| legend.contains(&format!("</i>class-{n}</span>"))).collect();
        assert_eq!(shown, (count - 6..count).collect::<Vec<_>>());
        assert!(
            told.is_none_or(|told| html.contains(told))
                && html.contains("in the table only") == told.is_some()
        );
        assert!(html.contains("share of requests that took no longer"));
    }
}

#[test]
fn charts_scroll_for_themselves_where_their_text_would_be_too_small() {
    let html = report::html(&full());
    assert_eq!(
        html.matches("<div class=\"scroll\"><svg class=\"").count(),
        html.matches("role=\"img\"").count()
    );
    assert!(html.contains(".scroll .wide { min-width: 52rem; }"));
}

#[test]
fn text_from_a_result_is_text_in_every_report() {
    let evil = "<script>alert(1)</script>\"'&|`*";
    let mut result = full();
    result.meta.name = evil.into();
    result.meta.command = vec![evil.into()];
    result.config.target = evil.into();
    result.config.settings = vec![(evil.into(), evil.into())];
    result.validity.reasons[0].message = evil.into();
    result.assertions[0].text = evil.into();
    result.assertions[0].found = evil.into();
    let phase = &mut result.phases[1];
    phase.name = evil.into();
    phase.churn[0].name = evil.into();
    let mut class = phase.classes.remove("upload").expect("the class");
    class.errors[0].code = evil.into();
    class.errors[0].source = evil.into();
    phase.classes.insert(evil.into(), class);
    let server = result.server.as_mut().expect("counters");
    server.after.insert(evil.into(), 5.0);
    server.last_failure = Some(evil.into());
    server.url = evil.into();
    result.search.as_mut().expect("a search").bound = evil.into();
    let html = report::html(&result);
    assert!(!html.contains("<script") && html.contains("&lt;script&gt;alert(1)"));
    assert_eq!(references(&html), Vec::<String>::new());
    let markdown = report::markdown(&result);
    // Between backticks Markdown takes nothing for markup.
    let outside = markdown.lines().filter(|line| !line.starts_with("| `")).collect::<String>();
    assert!(!outside.contains("<script"), "{markdown}");
    assert!(
        markdown
            .lines()
            .filter(|line| line.starts_with("| &lt;"))
            .all(|line| line.matches(" | ").count() <= 8)
    );
}

#[test]
fn a_result_without_anything_makes_a_report_all_the_same() {
    let empty = RunResult::default();
    assert!(report::html(&empty).contains("</html>"));
    assert!(report::markdown(&empty).contains("| **all** |"));
    report::write_hlog(&empty, &mut Vec::new()).expect("memory takes it");
}

#[test]
fn a_markdown_summary_has_figures_thresholds_and_errors() {
    let markdown = report::markdown(&full());
    for text in [
        "| **all** | 494/s |",
        "| get:1k |",
        "| `err<0.1%` |",
        "❌",
        "| RUNNER\\_UNREACHABLE | runner |",
        "µs CPU per request",
        "Bytes spliced: 90.0%; copied for each request: 102 B.",
    ] {
        assert!(markdown.contains(text), "{text}\n{markdown}");
    }
}

/// A search of three steps: two rates that held and one that did not.
fn searched() -> RunResult {
    let mut result = run(&Recipe { rate: 1000, seconds: 4, ..Recipe::default() });
    for (rate, median_us) in [(4000, 90_000.0), (2000, 800.0)] {
        result.append(run(&Recipe { rate, seconds: 4, median_us, ..Recipe::default() }));
    }
    let step = |rate: f64, held| SearchStep { rate, achieved: rate - 1.0, held, ..SearchStep::default() };
    let steps = vec![step(1000.0, true), step(4000.0, false), step(2000.0, true)];
    result.search = Some(Search { bound: "p99 <= 20ms".into(), rate: Some(2000.0), steps });
    result
}

#[test]
fn the_rate_found_and_its_step_stand_for_a_search() {
    let mut result = searched();
    let step = &result.phases[5];
    assert_eq!(step.planned_rate, Some((2000.0, 2000.0)));
    let p99_us = step.total().response.quantile_us(0.99);
    let thresholds = format!(
        "rate>=2000,rate<2000.5,p99>={}us,p99<={}us,sent<=8000,upload/rate<300",
        p99_us - 1.0,
        p99_us + 1.0
    );
    let outputs = Outputs { assert: vec![thresholds.parse().expect("good")], ..Outputs::default() };
    let holds = outputs.finish(&mut result).expect("nothing to write");
    assert!(holds, "{:?}", result.assertions);
    let markdown = report::markdown(&result);
    for text in [
        "Highest rate with p99 &lt;= 20ms: **2,000/s**",
        "| **all** | 2,000/s |",
        "| 4,000/s | 3,999/s |",
        "| did not hold |",
    ] {
        assert!(markdown.contains(text), "{text}\n{markdown}");
    }
    let html = report::html(&result);
    assert!(html.contains("<b>2,000/s</b> held with p99 &lt;= 20ms.") && html.contains("planned 2,000/s"));
}

#[test]
fn no_threshold_holds_where_no_rate_did() {
    let mut result = searched();
    let search = result.search.as_mut().expect("a search");
    search.rate = None;
    search.steps.iter_mut().for_each(|step| step.held = false);
    let outputs = Outputs {
        assert: vec!["rate>1,failed<5,p99<60m,valid".parse().expect("good")],
        ..Outputs::default()
    };
    assert_eq!(outputs.finish(&mut result).ok(), Some(false));
    let holds: Vec<_> = result.assertions.iter().map(|assertion| assertion.holds).collect();
    assert_eq!(
        (holds, result.assertions[1].found.as_str()),
        (vec![false, false, false, true], "no rate held")
    );
    assert!(report::markdown(&result).contains("**not even the lowest held**"));
}

#[test]
fn a_markdown_summary_of_several_phases_has_a_row_for_each() {
    let markdown = report::markdown(&run(&Recipe { rate: 500, seconds: 4, ..Recipe::default() }));
    for text in [
        "| phase | kind |",
        "| warm-up (not measured) | hold | 2 | 500/s | 500/s |",
        "| hold | hold | 4 | 500/s | 500/s |",
    ] {
        assert!(markdown.contains(text), "{text}\n{markdown}");
    }
    let mut single = run(&Recipe { seconds: 1, ..Recipe::default() });
    single.phases.remove(0);
    assert!(!report::markdown(&single).contains("| phase |"));
}

#[test]
fn saved_results_are_read_back_and_others_refused_with_their_name() {
    let folder = std::env::temp_dir().join(format!("loadtest-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let json = folder.join("run.json");
    let outputs = Outputs {
        json: Some(json.clone()),
        html: Some(folder.join("run.html")),
        hlog: Some(folder.join("run.hlog")),
        csv: Some(folder.join("run.csv")),
        markdown: Some(folder.join("run.md")),
        assert: vec!["p99<1s".parse().expect("good")],
    };
    let mut result = run(&Recipe::default());
    assert!(outputs.finish(&mut result).expect("written"));
    let read = report::load(&json).expect("its own");
    assert_eq!(read.phases[1].classes["upload"].response, result.phases[1].classes["upload"].response);
    assert_eq!(read.assertions, result.assertions);
    assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 5, "no temporary file stays");

    for (text, told) in [("{}", "no result"), ("", "no result"), ("nonsense", "no result")] {
        std::fs::write(&json, text).expect("written");
        let why = report::load(&json).expect_err(text);
        assert!(why.contains(told) && why.contains("run.json"), "{why}");
    }
    let later =
        serde_json::to_string(&RunResult { format: 99, ..run(&Recipe { seconds: 1, ..Recipe::default() }) });
    std::fs::write(&json, later.expect("JSON")).expect("written");
    assert!(report::load(&json).expect_err("a later format").contains("its format is 99"));
    assert!(report::load(&folder.join("none")).expect_err("not there").contains("none"));
    let nowhere = Outputs { html: Some(folder.join("no/such/folder.html")), ..Outputs::default() };
    assert!(nowhere.finish(&mut result).expect_err("no folder").to_string().contains("folder.html"));
    std::fs::remove_dir_all(&folder).expect("cleaned up");
}

fn loadtest(arguments: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output();
    let output = output.expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn exit_codes_tell_thresholds_and_comparisons_apart_from_mistakes() {
    let folder = std::env::temp_dir().join(format!("loadtest-exit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (a, b, short, none) = (file("a.json"), file("b.json"), file("short.json"), file("none.json"));
    for (path, median_us, seconds) in [(&a, 400.0, 30), (&b, 600.0, 30), (&short, 400.0, 3)] {
        let result = run(&Recipe { median_us, seconds, ..Recipe::default() });
        std::fs::write(path, serde_json::to_string(&result).expect("JSON")).expect("written");
    }
    for (arguments, code, told) in [
        (vec!["assert", &a, "p50<1s,err<1%"], 0, "ok    p50<1s"),
        (vec!["assert", &a, "p50<1s,p99<1us"], 99, "FAIL  p99<1us  found "),
        (vec!["assert", &a, "ws/p99<1s"], 99, "no class `ws`"),
        (vec!["assert", &a, "p99<5"], 2, "a time needs a unit"),
        (vec!["assert", &a], 2, "THRESHOLDS"),
        (vec!["assert", &none, "p99<5ms"], 2, "none.json"),
        (vec!["report", &a], 0, "| **all** |"),
        (vec!["report", &a, "--html", "-"], 0, "</html>"),
        (vec!["report", &a, "--assert", "p99<1us"], 99, "FAIL"),
        (vec!["compare", &a, &b], 0, "slower"),
        (vec!["compare", &a, &b, "--fail-if-slower"], 99, "slower"),
        (vec!["compare", &b, &a, "--fail-if-slower"], 0, "faster"),
        (vec!["compare", &a, &none], 2, "none.json"),
        (vec!["compare", &short, &short], 0, "too few for verdicts"),
        (vec!["compare", &short, &short, "--fail-if-slower"], 3, "too few for verdicts"),
    ] {
        let (found, text) = loadtest(&arguments);
        assert!(found == Some(code) && text.contains(told), "{arguments:?}: {found:?}\n{text}");
    }
    std::fs::remove_dir_all(&folder).expect("cleaned up");
}

/// As in `loadtest compare a b | head -1`, and on a full disk.
#[test]
fn output_nobody_reads_changes_no_exit_code_and_output_that_is_lost_does() {
    let folder = std::env::temp_dir().join(format!("loadtest-unread-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("ours");
    std::fs::write(folder.join("a.json"), serde_json::to_vec(&full()).expect("JSON")).expect("room");
    let run = |words: &[&str], out: std::process::Stdio| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let output = command.args(words).current_dir(&folder).stdout(out).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{words:?}: {said}");
        (output.status.code(), said)
    };
    for (words, code) in [
        (&["assert", "a.json", "p99<1ns"][..], 99),
        (&["assert", "a.json", "p99<50m"], 0),
        (&["compare", "a.json", "a.json"], 0),
        (&["report", "a.json"], 99),
        (&["report", "a.json", "--csv", "-"], 99),
        (&["scenarios"], 0),
        (&["population"], 0),
    ] {
        let (unread, write) = std::io::pipe().expect("descriptors");
        drop(unread);
        assert_eq!(run(words, write.into()).0, Some(code), "{words:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
        let (found, said) = run(words, full.into());
        assert!(found == Some(2) && said.contains("No space left"), "{words:?}: {found:?} {said}");
    }
    std::fs::remove_dir_all(&folder).expect("ours");
}

#[test]
fn a_report_goes_where_a_link_points_and_the_link_stays() {
    let folder = std::env::temp_dir().join(format!("loadtest-link-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("ours");
    let (real, link) = (folder.join("real"), folder.join("latest"));
    std::fs::write(&real, "old").expect("room");
    std::os::unix::fs::symlink("real", &link).expect("room");
    let outputs = Outputs { markdown: Some(link.clone()), ..Outputs::default() };
    outputs.finish(&mut full()).expect("written");
    assert!(link.is_symlink());
    assert!(std::fs::read_to_string(&real).expect("there").contains("| **all** |"));
    std::fs::remove_dir_all(&folder).expect("ours");
}

/// By any name of it.
#[test]
fn a_result_that_is_read_is_never_written_over() {
    let folder = std::env::temp_dir().join(format!("loadtest-kept-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("ours");
    let bytes = serde_json::to_vec(&full()).expect("JSON");
    for name in ["a.json", "b.json"] {
        std::fs::write(folder.join(name), &bytes).expect("room");
    }
    std::os::unix::fs::symlink("b.json", folder.join("link")).expect("room");
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let output = command.args(words).current_dir(&folder).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for words in [
        &["report", "a.json", "--html", "a.json"][..],
        &["report", "a.json", "--csv", "./a.json"],
        &["report", "link", "--markdown", "b.json"],
        &["compare", "a.json", "b.json", "--html", "b.json"],
        &["compare", "b.json", "a.json", "--markdown", "link"],
    ] {
        let (code, said) = run(words);
        assert_eq!(code, Some(2), "{words:?}: {said}");
        assert!(
            said.contains(&format!("{} is read and would be written over", words[words.len() - 1])),
            "{said}"
        );
    }
    let (code, said) = run(&["compare", "a.json", "b.json", "--html", "c", "--markdown", "c"]);
    assert!(code == Some(2) && said.contains("cannot take two outputs"), "{said}");
    for name in ["a.json", "b.json"] {
        assert_eq!(std::fs::read(folder.join(name)).expect("there"), bytes, "{name}");
    }
    let (code, said) = run(&["report", "a.json", "--html", "new.html", "--csv", "/dev/null"]);
    assert_eq!(code, Some(99), "its thresholds do not hold: {said}");
    std::fs::remove_dir_all(&folder).expect("ours");
}

#[test]
fn a_class_of_which_nothing_has_a_time_has_dashes_and_no_zeros() {
    let mut result = run(&Recipe::default());
    let mut class = ClassResult { sent: 3, failed: 3, ..ClassResult::default() };
    class.count_error("reset", "network", 3);
    result.phases[1].classes.insert("upload:4k".into(), class);
    let markdown = report::markdown(&result);
    let row = markdown.lines().find(|line| line.contains("upload:4k")).expect("a row");
    assert!(row.contains("| – | – | – |") && !row.contains("| 0 | 0 | 0 |"), "{row}");
    let page = report::html(&result);
    let row = page.split("<tr").find(|row| row.contains("upload:4k")).expect("a row");
    assert_eq!(row.matches(">–<").count(), 6, "{row}");
}
