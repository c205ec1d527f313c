//! Charts as inline SVG: axes and marks by `plotters`, hover read-outs and heat cells on top of them.
//!
//! Colours are names: each is written as a fixed value nothing else uses, and the page's style sheet gives it its look in
//! light and in dark. A chart holds no text but numbers, units and words of ours; what a person or a scenario named is in the
//! HTML and in the titles of [`Flag`]s, escaped.

use super::scale::Scale;
use plotters::prelude::*;
use plotters::series::AreaSeries;
use std::fmt::Write as _;

/// Of axes, in the unit of `plotters`, which writes less of it into the SVG.
const TEXT_SIZE: i32 = 26;
/// What the number of a flag takes, with a little air.
const FLAG_WIDTH: i32 = 48;

/// Of a picture, in half pixels: it is drawn at twice the size it is shown at, since coordinates are whole numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// The page's whole width.
    Wide,
    /// Two beside each other.
    Half,
}

impl Size {
    /// What the style sheet calls it: how narrow it may become.
    fn class(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Half => "half",
        }
    }

    fn pixels(self) -> (u32, u32) {
        match self {
            Self::Wide => (1840, 520),
            Self::Half => (900, 420),
        }
    }
}

/// What colours mean. The style sheet knows them by [`Ink::rgb`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ink {
    /// One of several series, counted from 0; they repeat after [`Ink::SERIES`].
    Series(usize),
    /// As a series, dashed.
    Dashed(usize),
    Bad,
    /// Behind everything: a phase, a bound.
    Band,
    Axis,
    Grid,
    Text,
    /// Of a heat map's cell: 1 to [`HEAT_LEVELS`].
    Heat(usize),
}

impl Ink {
    pub const SERIES: usize = 8;

    /// The value that stands for the colour: `#rr0000` with a number of its own in red.
    pub fn rgb(self) -> RGBColor {
        let number = match self {
            Self::Series(n) => 1 + n % Self::SERIES,
            Self::Dashed(n) => 17 + n % Self::SERIES,
            Self::Bad => 33,
            Self::Band => 34,
            Self::Axis => 35,
            Self::Grid => 36,
            Self::Text => 37,
            Self::Heat(level) => 48 + level,
        };
        RGBColor(u8::try_from(number).unwrap_or(0), 0, 0)
    }

    /// As it stands in the SVG.
    pub fn hex(self) -> String {
        let RGBColor(r, g, b) = self.rgb();
        format!("#{r:02X}{g:02X}{b:02X}")
    }
}

/// Something drawn between the axes. Points are in the scales' units, in order of x; a NaN interrupts a line.
pub enum Mark {
    Line(Ink, Vec<(f64, f64)>),
    /// Down to the lower end of the y axis.
    Area(Ink, Vec<(f64, f64)>),
    /// From one x to another over the whole height.
    Band(f64, f64),
    /// A vertical line at an x.
    Moment(Ink, f64),
}

/// A vertical line over the whole height, with a number above it and a name under the pointer.
pub struct Flag {
    pub x: f64,
    pub number: usize,
    /// Anybody's text.
    pub title: String,
}

/// What is shown when the pointer is over a stretch of the x axis.
pub struct Readout {
    pub from: f64,
    pub to: f64,
    /// Numbers, units and words of ours.
    pub text: String,
}

/// Cells of a heat map: a column from `x` to `x + width`, and for each cell its y range and a level of 1 to [`HEAT_LEVELS`].
pub struct HeatColumn {
    pub x: f64,
    pub width: f64,
    pub cells: Vec<(f64, f64, usize)>,
}

pub const HEAT_LEVELS: usize = 8;

pub struct Chart<'a> {
    /// Read to people who do not see it.
    pub title: &'a str,
    pub size: Size,
    pub x: Scale,
    /// What the numbers of the x axis are, where they do not say so themselves.
    pub x_title: &'a str,
    pub y: Scale,
    pub marks: Vec<Mark>,
    pub heat: Vec<HeatColumn>,
    /// In order of x.
    pub flags: Vec<Flag>,
    pub readouts: Vec<Readout>,
}

/// Pixels of the plotting area.
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl Chart<'_> {
    /// The SVG element.
    pub fn svg(&self) -> String {
        let mut drawn = String::new();
        let frame = self.draw(&mut drawn).expect("drawing into memory");
        // The element's own tag is written anew: no fixed size, and no name space, which HTML does not need.
        let inner = drawn.find('>').map_or("", |end| &drawn[end + 1..]);
        let inner = inner.trim_end().strip_suffix("</svg>").unwrap_or(inner);
        let (width, height) = self.size.pixels();
        let mut svg = format!(
            "<svg class=\"{}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">",
            self.size.class(),
            self.title
        );
        svg.push_str(inner);
        if !self.x_title.is_empty() {
            let (x, y) = ((frame.left + frame.right) / 2, frame.bottom + 62);
            // Writing to a String cannot fail.
            let _ = write!(
                svg,
                "<text class=\"axis\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
                self.x_title
            );
        }
        self.heat_cells(&frame, &mut svg);
        self.hover(&frame, &mut svg);
        self.flags(&frame, &mut svg);
        svg.push_str("</svg>");
        svg
    }

    fn draw(&self, into: &mut String) -> Result<Frame, DrawingAreaErrorKind<std::io::Error>> {
        let root = SVGBackend::with_string(into, self.size.pixels()).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(if self.flags.is_empty() { 12 } else { 46 })
            .margin_right(28)
            .x_label_area_size(if self.x_title.is_empty() { 44 } else { 78 })
            .y_label_area_size(130)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let text = Ink::Text.rgb();
        let label = ("sans-serif", TEXT_SIZE, &text).into_text_style(&root);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.rgb())
            .axis_style(Ink::Axis.rgb())
            .x_label_style(label.clone())
            .y_label_style(label)
            .draw()?;
        let (low, high) = (self.y.from, self.y.to);
        for mark in &self.marks {
            match mark {
                Mark::Line(ink, points) => {
                    for piece in points.split(|(_, y)| y.is_nan()).filter(|piece| !piece.is_empty()) {
                        let style = ink.rgb().stroke_width(4);
                        chart.draw_series(LineSeries::new(piece.iter().copied(), style))?;
                    }
                }
                Mark::Area(ink, points) => {
                    let style = ink.rgb().mix(0.18);
                    chart.draw_series(AreaSeries::new(points.iter().copied(), low, style))?;
                }
                Mark::Band(from, to) => {
                    let style = Ink::Band.rgb().filled();
                    chart.draw_series([Rectangle::new([(*from, high), (*to, low)], style)])?;
                }
                Mark::Moment(ink, at) => {
                    let style = ink.rgb().stroke_width(3);
                    chart.draw_series(LineSeries::new([(*at, low), (*at, high)], style))?;
                }
            }
        }
        let (x, y) = chart.plotting_area().get_pixel_range();
        root.present()?;
        Ok(Frame { left: x.start, right: x.end, top: y.start, bottom: y.end })
    }

    fn px(&self, frame: &Frame, x: f64) -> i32 {
        self.x.place(x, (frame.left, frame.right))
    }

    fn py(&self, frame: &Frame, y: f64) -> i32 {
        self.y.place(y, (frame.bottom, frame.top))
    }

    /// One path per level: a rectangle for each cell would be five times the bytes.
    fn heat_cells(&self, frame: &Frame, svg: &mut String) {
        for level in 1..=HEAT_LEVELS {
            let mut path = String::new();
            for column in &self.heat {
                let (left, right) = (self.px(frame, column.x), self.px(frame, column.x + column.width));
                for (low, high, _) in column.cells.iter().filter(|cell| cell.2 == level) {
                    let (bottom, top) = (self.py(frame, *low), self.py(frame, *high));
                    // Writing to a String cannot fail.
                    let (width, height) = ((right - left).max(1), bottom - top);
                    let _ = write!(path, "M{left} {top}h{width}v{height}h-{width}z");
                }
            }
            if !path.is_empty() {
                let _ = write!(svg, "<path class=\"heat{level}\" d=\"{path}\"/>");
            }
        }
    }

    /// Without a script: an invisible strip for each stretch, whose neighbours show while the pointer is over it.
    fn hover(&self, frame: &Frame, svg: &mut String) {
        let Frame { left, right, top, bottom } = *frame;
        for readout in &self.readouts {
            let (from, to) = (self.px(frame, readout.from), self.px(frame, readout.to));
            let (width, middle) = ((to - from).max(1), (from + to) / 2);
            let (anchor, at) =
                if middle < (left + right) / 2 { ("end", right - 12) } else { ("start", left + 12) };
            let _ = write!(
                svg,
                "<g class=\"hover\"><rect x=\"{from}\" y=\"{top}\" width=\"{width}\" height=\"{}\"/>\
                 <path d=\"M{middle} {top}V{bottom}\"/><text x=\"{at}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text></g>",
                bottom - top,
                top + 28,
                readout.text,
            );
        }
    }

    /// Above everything: its title must be under the pointer, not the strip of a read-out.
    fn flags(&self, frame: &Frame, svg: &mut String) {
        let Frame { left, right, top, bottom } = *frame;
        let places: Vec<i32> = self.flags.iter().map(|flag| self.px(frame, flag.x)).collect();
        // Where there are more than have room, only every so many has its number written.
        let room = ((right - left) / FLAG_WIDTH + 1).max(1) as usize;
        let each = places.len().div_ceil(room).max(1);
        let numbers = spread(places.iter().step_by(each).copied().collect(), FLAG_WIDTH, right);
        for (n, (flag, x)) in self.flags.iter().zip(&places).enumerate() {
            let title = maud::html! { title { (flag.number) ": " (flag.title) } }.into_string();
            let line = format!("M{x} {bottom}V{top}");
            let _ = write!(svg, "<g class=\"flag\">{title}<path class=\"grip\" d=\"{line}\"/>");
            let _ = match numbers.get(n / each).filter(|_| n % each == 0) {
                Some(at) => write!(
                    svg,
                    "<path d=\"{line}L{at} {}\"/><text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{}</text></g>",
                    top - 12,
                    top - 18,
                    flag.number
                ),
                None => write!(svg, "<path d=\"{line}\"/></g>"),
            };
        }
    }
}

/// Moves places in ascending order apart until each has its width, and none beyond the end.
fn spread(mut places: Vec<i32>, width: i32, end: i32) -> Vec<i32> {
    let mut least = i32::MIN;
    for place in &mut places {
        *place = (*place).max(least);
        least = *place + width;
    }
    let mut most = end;
    for place in places.iter_mut().rev() {
        *place = (*place).min(most);
        most = *place - width;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::scale::Numbers;
    use super::*;

    #[test]
    fn numbers_of_flags_that_are_close_do_not_overlap() {
        assert_eq!(spread(vec![100, 300, 500], 48, 1000), [100, 300, 500]);
        assert_eq!(spread(vec![100, 101, 102, 500], 48, 1000), [100, 148, 196, 500]);
        assert_eq!(spread(vec![100, 980, 990, 1000], 48, 1000), [100, 904, 952, 1000]);
    }

    #[test]
    fn of_more_flags_than_have_room_all_are_lines_and_some_have_numbers() {
        for count in [0, 1, 17, 18, 400] {
            let flag = |n| Flag { x: n as f64 / 400.0, number: n + 1, title: "<b>".into() };
            let chart = Chart {
                title: "Flags",
                size: Size::Half,
                x: Scale::clock(1.0),
                x_title: "",
                y: Scale::up_to(1.0, Numbers::Plain),
                marks: Vec::new(),
                heat: Vec::new(),
                flags: (0..count).map(flag).collect(),
                readouts: Vec::new(),
            };
            let svg = chart.svg();
            assert_eq!(svg.matches("<g class=\"flag\">").count(), count);
            let numbers = svg.matches("text-anchor=\"middle\">").count();
            assert!(
                numbers <= 40 && (count == 0 || svg.contains(">1: &lt;b&gt;</title>")),
                "{count}: {numbers}"
            );
        }
    }
}
