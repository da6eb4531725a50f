//! The frame of every page: head, navigation, main part. Pages call [`page`] with their title and their body.

use maud::{DOCTYPE, Markup, html};

use crate::api::ui::{SECTIONS, assets};

/// What the frame shows of the visitor.
#[derive(Clone, Copy)]
pub(crate) struct Who<'a> {
    /// The organisation.
    pub organization: &'a str,
    /// True if the pages for admins are shown, too.
    pub admin: bool,
    /// True if there is a session to end.
    pub signed_in: bool,
}

/// What a page tells its frame.
#[derive(Default)]
pub(crate) struct Frame<'a> {
    /// Title of the window.
    pub title: &'a str,
    /// Path of the page's section, which the navigation marks.
    pub section: Option<&'static str>,
    /// Who looks; `None` shows no navigation.
    pub who: Option<Who<'a>>,
    /// Files of `assets/ui` that the page runs besides `page.js`, in their order. `uplot.js` is a classic script, which
    /// defines `uPlot`; all others are modules.
    pub scripts: &'a [&'static str],
    /// Further style files of `assets/ui`.
    pub styles: &'a [&'static str],
}

/// Returns a page. `body` begins with the one `h1`.
#[expect(clippy::needless_pass_by_value, reason = "markup is made to be put in")]
pub(crate) fn page(frame: &Frame<'_>, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (frame.title) " – Attune" }
                link rel="icon" type="image/svg+xml" href=(assets::path("icon.svg"));
                @for style in frame.styles.iter().chain(&["page.css"]) {
                    link rel="stylesheet" href=(assets::path(style));
                }
                script type="module" src=(assets::path("page.js")) {}
                @for script in frame.scripts {
                    @if *script == "uplot.js" {
                        script defer src=(assets::path(script)) {}
                    } @else {
                        script type="module" src=(assets::path(script)) {}
                    }
                }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/ui" { "Attune" }
                    @if let Some(who) = frame.who { (navigation(frame, who)) }
                }
                main id="main" tabindex="-1" { (body) }
            }
        }
    }
}

fn navigation(frame: &Frame<'_>, who: Who<'_>) -> Markup {
    html! {
        nav aria-label="Pages" {
            ul {
                @for section in SECTIONS.iter().filter(|section| who.admin || !section.admin) {
                    li {
                        a href=(section.path) aria-current=[(frame.section == Some(section.path)).then_some("page")] {
                            (section.label)
                        }
                    }
                }
            }
        }
        div.who {
            span title="Your organisation" { bdi { (who.organization) } }
            @if who.signed_in {
                form method="post" action="/ui/sign-out" { button.quiet type="submit" { "Sign out" } }
            }
        }
    }
}
