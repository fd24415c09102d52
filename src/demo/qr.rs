//! The link for other machines as a QR code: on the page as SVG, in the terminal as blocks.

use qrcode::render::{svg, unicode};
use qrcode::{EcLevel, QrCode};

/// As an image, black on white with its quiet zone; `None` if the text is too long for a code.
pub(super) fn image(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let colors = (svg::Color("#000"), svg::Color("#fff"));
    Some(code.render().min_dimensions(240, 240).dark_color(colors.0).light_color(colors.1).build())
}

/// For a terminal that knows colours: black on white whatever its own colours are, since not every phone reads the reverse.
pub(super) fn blocks(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let drawn = code.render().dark_color(unicode::Dense1x2::Dark).light_color(unicode::Dense1x2::Light).build();
    Some(drawn.lines().map(|line| format!("  \x1b[30;107m{line}\x1b[0m\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_becomes_an_image_and_blocks_and_a_novel_does_not() {
        let link = "http://192.168.1.20:8080/?token=00112233445566778899aabbccddeeff#room=abcdefgh";
        let image = image(link).unwrap();
        assert!(image.contains("<svg") && image.contains("#000"), "{image}");
        let blocks = blocks(link).unwrap();
        assert!(blocks.lines().count() > 15 && blocks.lines().all(|line| line.ends_with("\x1b[0m")));
        assert!(super::image(&"x".repeat(8000)).is_none());
    }
}
