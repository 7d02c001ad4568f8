//! A plot with logarithmic axes, as SVG, to show how a figure grows.

use std::fmt::Write;

pub struct Series {
    pub name: &'static str,
    pub colour: &'static str,
    /// Number and nanoseconds.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const TOP: f64 = 50.0;
const RIGHT: f64 = 30.0;
const BOTTOM: f64 = 60.0;

/// Powers of ten that an axis spans.
struct Axis {
    from: i32,
    to: i32,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::MAX, f64::min);
        let most = values.fold(f64::MIN, f64::max);
        #[allow(clippy::cast_possible_truncation)]
        Self { from: least.log10().floor() as i32, to: most.log10().ceil() as i32 }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from)
    }
}

/// The slope of a straight line through the points' logarithms: 1 for linear growth.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.log10(), y.log10())).collect();
    let count = logs.len() as f64;
    let (mean_x, mean_y) = (
        logs.iter().map(|p| p.0).sum::<f64>() / count,
        logs.iter().map(|p| p.1).sum::<f64>() / count,
    );
    let over: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let under: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    over / under
}

/// The plot. A dotted line through each series' last point shows linear growth.
pub fn svg(title: &str, x_name: &str, series: &[Series]) -> String {
    let all = || series.iter().flat_map(|series| series.points.iter());
    let x_axis = Axis::over(all().map(|p| p.0));
    let y_axis = Axis::over(all().map(|p| p.1));
    let x = |value: f64| LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - y_axis.place(value) * (HEIGHT - TOP - BOTTOM);
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{}" y="24" text-anchor="middle" font-size="15">{title}</text>"##,
        WIDTH / 2.0
    );
    for power in x_axis.from..=x_axis.to {
        let at = x(10f64.powi(power));
        let _ =
            writeln!(out, r##"<path d="M{at:.1} {TOP}V{:.1}" stroke="#ddd"/>"##, HEIGHT - BOTTOM);
        let label = 10f64.powi(power);
        let _ = writeln!(
            out,
            r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            HEIGHT - BOTTOM + 18.0
        );
    }
    for power in y_axis.from..=y_axis.to {
        let at = y(10f64.powi(power));
        let _ =
            writeln!(out, r##"<path d="M{LEFT} {at:.1}H{:.1}" stroke="#ddd"/>"##, WIDTH - RIGHT);
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 6.0,
            at + 4.0,
            duration(10f64.powi(power))
        );
    }
    let _ = writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{x_name}</text>"#,
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 14.0
    );
    for (index, Series { name, colour, points }) in series.iter().enumerate() {
        let line: Vec<_> =
            points.iter().map(|&(n, ns)| format!("{:.1},{:.1}", x(n), y(ns))).collect();
        let _ = writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            line.join(" ")
        );
        for &(n, ns) in points {
            let _ = writeln!(
                out,
                r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{colour}"/>"#,
                x(n),
                y(ns)
            );
        }
        if let Some(&(n, ns)) = points.last() {
            // Down to the lower edge of the plot.
            let least = (10f64.powi(y_axis.from) * n / ns).max(10f64.powi(x_axis.from));
            let _ = writeln!(
                out,
                r#"<path d="M{:.1} {:.1}L{:.1} {:.1}" stroke="{colour}" stroke-dasharray="3 4"/>"#,
                x(least),
                y(least * ns / n),
                x(n),
                y(ns)
            );
        }
        let at = TOP + 18.0 + 18.0 * index as f64;
        let _ = writeln!(
            out,
            r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{colour}"/>"#,
            LEFT + 14.0,
            at - 4.0
        );
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{at:.1}">{name} (slope {:.2})</text>"#,
            LEFT + 24.0,
            slope(points)
        );
    }
    let _ = writeln!(out, "</svg>");
    out
}

fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{ns} ns"),
        ns if ns < 1e6 => format!("{} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{} ms", ns / 1e6),
        ns => format!("{} s", ns / 1e9),
    }
}
