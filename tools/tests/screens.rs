//! What a person sees: the picture in the terminal, in tmux, and the window, under Xvfb.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{Demo, Folder, Running, need, read_png, turn, wait_until};

const VIEWER: &str = env!("CARGO_BIN_EXE_rtsprelay-view");

/// The output of a program.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A terminal in tmux, which ends with it.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn tmux(&self, arguments: &[&str]) -> String {
        output("tmux", &[&["-f", "/dev/null", "-S", &self.socket][..], arguments].concat())
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the terminal shows:\n{}", self.screen());
        }
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn in_tmux_the_picture_is_of_half_blocks_with_the_numbers_under_it() {
    let _turn = turn();
    need("tmux", "tmux");
    let (demo, folder) = (Demo::start(), Folder::new("tmux"));
    let terminal = Terminal { socket: folder.file("tmux") };
    let tmux = |arguments: &[&str]| terminal.tmux(arguments);
    let screen = || terminal.screen();
    let code = folder.file("code");
    // If it fails, the terminal stays open to show why.
    let command =
        format!("{VIEWER} {} --terminal; echo $? > {code}; [ \"$(cat {code})\" = 0 ] || sleep infinity", demo.address);
    tmux(&["new-session", "-d", "-x", "100", "-y", "30", &command]);
    wait_until("the numbers", || {
        assert!(!Path::new(&code).exists(), "the viewer ended before it had a picture");
        let text = screen();
        (text.contains("fps 3") || text.contains("fps 2"))
            && ["H.264 640x360", "kbit/s", "lost 0", "latency"].iter().all(|word| text.contains(word))
    });
    wait_until("the picture", || screen().matches('▀').count() > 1500);
    wait_until("many colours in 24 bits", || {
        let colours = tmux(&["capture-pane", "-p", "-e"]);
        colours.matches("[38;2;").count() + colours.matches(";48;2;").count() > 500
    });
    tmux(&["send-keys", "?"]);
    wait_until("the keys", || screen().contains("q      quit"));
    tmux(&["send-keys", " "]);
    wait_until("the picture is held", || screen().contains("HELD"));
    tmux(&["send-keys", "q"]);
    wait_until("the end", || Path::new(&code).exists());
    wait_until("the exit code", || std::fs::read_to_string(&code).is_ok_and(|code| code == "0\n"));
}

/// A display without a screen.
struct Display {
    _server: Running,
    name: String,
}

impl Display {
    fn start(folder: &Folder) -> Self {
        need("Xvfb", "xvfb");
        need("xdotool", "xdotool");
        need("import", "imagemagick");
        // Without `-noreset` Xvfb resets when its last client leaves, and refuses clients meanwhile: a check for the
        // window that ends before the viewer has connected would be such a last client.
        let log = folder.file("Xvfb.log");
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp", "-noreset"])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("it can be written"))
            .spawn()
            .expect("Xvfb starts");
        let mut number = String::new();
        let stdout = server.stdout.take().expect("it is piped");
        let server = Running(server);
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut number).expect("it can be read");
        assert!(!number.is_empty(), "Xvfb does not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
        Display { _server: server, name: format!(":{}", number.trim()) }
    }

    fn xdotool(&self, arguments: &[&str]) -> String {
        let output = Command::new("xdotool").args(arguments).env("DISPLAY", &self.name).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The screen's contents: three bytes per pixel, and the number of pixels per row.
    fn shot(&self, file: &str) -> (Vec<u8>, u32) {
        let png = format!("PNG24:{file}");
        let status = Command::new("import").args(["-window", "root", &png]).env("DISPLAY", &self.name).status();
        assert!(status.expect("it runs").success());
        read_png(Path::new(file))
    }
}

#[test]
fn a_window_keeps_the_shape_of_the_picture_and_obeys_keys() {
    let _turn = turn();
    let (demo, folder) = (Demo::start(), Folder::new("window"));
    let display = Display::start(&folder);
    let snapshot = folder.file("snapshot.png");
    let mut viewer = Running(
        Command::new(VIEWER)
            .args([&demo.address, "--window", "--snapshot", &snapshot])
            .env("DISPLAY", &display.name)
            .env_remove("WAYLAND_DISPLAY")
            .spawn()
            .expect("it starts"),
    );
    let find = || display.xdotool(&["search", "--name", "^rtsprelay-view"]);
    wait_until("a window", || {
        let ended = viewer.0.try_wait().expect("it can be waited for");
        assert!(ended.is_none(), "the viewer ended before it had a window: {ended:?}");
        !find().is_empty()
    });
    let window = find();
    let file = folder.file("shot.png");
    // A square window: a 16:9 picture has black bars above and below.
    display.xdotool(&["windowsize", &window, "640", "640"]);
    display.xdotool(&["windowmove", &window, "0", "0"]);
    display.xdotool(&["windowfocus", &window]);
    display.xdotool(&["key", "--window", &window, "i"]);
    // The stripes at the bottom of the test pattern: alternately light and dark, 40 pixels each.
    let stripes = |row: usize| -> Vec<u8> {
        let (pixels, width) = display.shot(&file);
        (0..640).map(|x| pixels[(row * width as usize + x) * 3 + 1]).collect()
    };
    let (foot, under) = (140 + 345, 140 + 365);
    wait_until("the picture is in the middle of the window", || {
        let row = stripes(foot);
        let (light, dark) = (row.iter().filter(|&&green| green > 190), row.iter().filter(|&&green| green < 80));
        light.count() > 200 && dark.count() > 200 && stripes(under).iter().all(|&green| green == 0)
    });
    display.xdotool(&["key", "--window", &window, "s"]);
    wait_until("the snapshot", || Path::new(&snapshot).metadata().is_ok_and(|file| file.len() > 1000));
    display.xdotool(&["key", "--window", &window, "q"]);
    wait_until("the end", || viewer.0.try_wait().expect("it can be waited for").is_some());
    assert_eq!(viewer.0.wait().expect("it ended").code(), Some(0));
}
