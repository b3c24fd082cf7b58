//! The picture in a window, on X11 or Wayland.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use winit::application::ApplicationHandler;
use winit::dpi::LogicalSize;
use winit::error::{EventLoopError, OsError};
use winit::event::{ElementState, WindowEvent};
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop, OwnedDisplayHandle};
use winit::keyboard::{Key as WindowKey, NamedKey};
use winit::window::{Fullscreen, Window, WindowId};

use crate::Ending;
use crate::overlay::{Canvas, Font, GREY, Line, RED, WHITE, pixel};
use crate::player::{Player, Screen};
use crate::status::{self, HELP, Key, View};
use crate::target::Target;

/// How often to check what causes no event: signals, the end of a second.
const TICK: Duration = Duration::from_millis(100);

/// What to watch for.
#[derive(Clone, Debug)]
pub struct Options {
    /// When to stop.
    pub until: Option<Instant>,
    /// Where `s` writes.
    pub snapshot: Option<std::path::PathBuf>,
    /// Starts in full screen.
    pub fullscreen: bool,
}

/// Why there is no window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// No display, or no connection to it.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The display refused the window.
    #[error(transparent)]
    Window(#[from] OsError),
    /// The window's pixels cannot be drawn.
    #[error(transparent)]
    Surface(#[from] softbuffer::SoftBufferError),
    /// A library panicked.
    #[error("a library for the display is missing or broken")]
    Library,
}

/// Shows the stream until the end. An error says why no window could be opened.
pub fn run(
    target: &Target,
    player: &Arc<Player>,
    options: Options,
    stop: &dyn Fn() -> bool,
) -> Result<Ending, WindowError> {
    // The display's libraries are looked for only now, and one that is missing makes a panic in some places.
    let shown = catch_unwind(AssertUnwindSafe(|| show(target, player, options, stop)));
    shown.unwrap_or_else(|_| Err(WindowError::Library))
}

fn show(
    target: &Target,
    player: &Arc<Player>,
    options: Options,
    stop: &dyn Fn() -> bool,
) -> Result<Ending, WindowError> {
    let event_loop = EventLoop::<()>::with_user_event().build()?;
    let proxy = event_loop.create_proxy();
    player.set_waker(move || {
        // The loop is gone only when nothing is to be shown any more.
        let _ = proxy.send_event(());
    });
    let context = softbuffer::Context::new(event_loop.owned_display_handle())?;
    let mut app = App {
        target,
        player,
        options,
        stop,
        context,
        shown: None,
        screen: player.screen(),
        drawn: 0,
        view: View { numbers: true, ..View::default() },
        ending: None,
        failure: None,
    };
    event_loop.run_app(&mut app)?;
    match (app.failure, app.ending) {
        (Some(failure), _) => Err(failure),
        (None, ending) => Ok(ending.unwrap_or(Ending::Asked)),
    }
}

type Surface = softbuffer::Surface<OwnedDisplayHandle, Rc<Window>>;

struct App<'a> {
    target: &'a Target,
    player: &'a Arc<Player>,
    options: Options,
    stop: &'a dyn Fn() -> bool,
    context: softbuffer::Context<OwnedDisplayHandle>,
    shown: Option<(Rc<Window>, Surface)>,
    screen: Screen,
    /// The number of the picture in the window.
    drawn: u64,
    view: View,
    ending: Option<Ending>,
    failure: Option<WindowError>,
}

impl App<'_> {
    fn open(&mut self, event_loop: &ActiveEventLoop) -> Result<(), WindowError> {
        let attributes = Window::default_attributes()
            .with_title(format!("rtsprelay-view {}", self.target))
            .with_inner_size(LogicalSize::new(960.0, 540.0))
            .with_fullscreen(self.options.fullscreen.then_some(Fullscreen::Borderless(None)));
        let window = Rc::new(event_loop.create_window(attributes)?);
        let surface = Surface::new(&self.context, window.clone())?;
        self.shown = Some((window, surface));
        Ok(())
    }

    fn redraw_soon(&self) {
        if let Some((window, _)) = &self.shown {
            window.request_redraw();
        }
    }

    fn key(&mut self, key: Key, event_loop: &ActiveEventLoop) {
        match key {
            Key::Quit => self.end(Ending::Asked, event_loop),
            Key::Freeze => self.view.frozen = !self.view.frozen,
            Key::Snapshot => {
                let path = self.options.snapshot.clone();
                self.view.snapshot(self.screen.picture.as_deref(), path.as_deref());
            }
            Key::FullScreen => {
                if let Some((window, _)) = &self.shown {
                    let full = window.fullscreen().is_none().then_some(Fullscreen::Borderless(None));
                    window.set_fullscreen(full);
                }
            }
            Key::Numbers => self.view.numbers = !self.view.numbers,
            Key::Help => self.view.help = !self.view.help,
        }
        self.redraw_soon();
    }

    fn end(&mut self, ending: Ending, event_loop: &ActiveEventLoop) {
        self.ending.get_or_insert(ending);
        event_loop.exit();
    }

    fn draw(&mut self) -> Result<(), WindowError> {
        let Some((window, surface)) = &mut self.shown else { return Ok(()) };
        let size = window.inner_size();
        let (Some(width), Some(height)) = (NonZeroU32::new(size.width), NonZeroU32::new(size.height)) else {
            return Ok(());
        };
        surface.resize(width, height)?;
        let mut buffer = surface.buffer_mut()?;
        let (width, height) = (width.get() as usize, height.get() as usize);
        let mut canvas = Canvas { pixels: &mut buffer, width, height };
        paint_picture(&mut canvas, &self.screen);
        paint_text(&mut canvas, self.target, &self.screen, self.player, &mut self.view);
        window.pre_present_notify();
        buffer.present()?;
        if self.screen.number != self.drawn {
            self.drawn = self.screen.number;
            self.player.stats().shown();
        }
        Ok(())
    }
}

/// The picture as large as it fits, and black around it.
fn paint_picture(canvas: &mut Canvas<'_>, screen: &Screen) {
    let Some(picture) = &screen.picture else { return canvas.pixels.fill(0) };
    let area = (canvas.width, canvas.height);
    let (left, top, width, height) = status::fit((picture.width(), picture.height()), area);
    if (width, height) != area {
        canvas.pixels.fill(0);
    }
    let (grey, stride) = (status::fault(screen).is_some(), canvas.width);
    let pixels = &mut *canvas.pixels;
    picture.scale(width, height, |x, y, colour| {
        pixels[(top + y) * stride + left + x] = pixel(if grey { status::greyed(colour) } else { colour });
    });
}

fn paint_text(canvas: &mut Canvas<'_>, target: &Target, screen: &Screen, player: &Player, view: &mut View) {
    let mut font = Font::for_width(canvas.width);
    let mut lines: Vec<Line> = Vec::new();
    if let Some(fault) = status::fault(screen) {
        lines.push((fault.to_owned(), RED));
    } else if screen.picture.is_none() {
        lines.push((format!("waiting for a picture from {target}"), WHITE));
    }
    if view.frozen {
        lines.push(("paused; press space to resume".to_owned(), WHITE));
    }
    if let Some(note) = view.note() {
        lines.push((note, WHITE));
    }
    if view.help {
        lines.extend(HELP.iter().map(|&line| (line.to_owned(), WHITE)));
    }
    let stats = player.stats();
    if view.numbers {
        lines.push((format!("{}  (? for keys)", status::title(target, screen)), GREY));
        lines.extend(status::numbers(&stats).map(|line| (line, WHITE)));
    }
    if lines.is_empty() {
        return;
    }
    let top = font.lines(canvas, 0, &lines);
    if view.numbers {
        font.graph(canvas, top, &stats);
    }
}

impl ApplicationHandler<()> for App<'_> {
    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        if self.shown.is_none()
            && let Err(failure) = self.open(event_loop)
        {
            self.failure = Some(failure);
            event_loop.exit();
        }
    }

    fn user_event(&mut self, _: &ActiveEventLoop, (): ()) {
        let next = self.player.screen();
        if self.view.frozen {
            self.screen.state = next.state;
        } else {
            self.screen = next;
        }
        self.redraw_soon();
    }

    fn window_event(&mut self, event_loop: &ActiveEventLoop, _: WindowId, event: WindowEvent) {
        match event {
            WindowEvent::CloseRequested => self.end(Ending::Asked, event_loop),
            WindowEvent::Resized(_) | WindowEvent::ScaleFactorChanged { .. } => self.redraw_soon(),
            WindowEvent::RedrawRequested => {
                if let Err(failure) = self.draw() {
                    self.failure = Some(failure);
                    event_loop.exit();
                }
            }
            WindowEvent::KeyboardInput { event, .. } if event.state == ElementState::Pressed => {
                let character = match &event.logical_key {
                    WindowKey::Character(text) => text.chars().next(),
                    WindowKey::Named(NamedKey::Space) => Some(' '),
                    WindowKey::Named(NamedKey::Escape) => Some('\u{1b}'),
                    _ => None,
                };
                if let Some(key) = character.and_then(Key::of)
                    && !event.repeat
                {
                    self.key(key, event_loop);
                }
            }
            _ => {}
        }
    }

    fn about_to_wait(&mut self, event_loop: &ActiveEventLoop) {
        let now = Instant::now();
        if (self.stop)() {
            self.end(Ending::Asked, event_loop);
        } else if self.player.complete() {
            self.end(Ending::Complete, event_loop);
        } else if self.options.until.is_some_and(|until| now >= until) {
            self.end(Ending::TimeOver, event_loop);
        }
        if self.player.stats().roll(now) {
            self.redraw_soon();
        }
        event_loop.set_control_flow(ControlFlow::WaitUntil(now + TICK));
    }
}
