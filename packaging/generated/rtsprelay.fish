# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_rtsprelay_global_optspecs
    string join \n h/help V/version
end

function __fish_rtsprelay_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_rtsprelay_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_rtsprelay_using_subcommand
    set -l cmd (__fish_rtsprelay_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -s V -l version -d 'Print version'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "run" -d 'Serve the streams of a configuration file, or one camera without a file. Without a file, programs on this machine can also publish streams of any name: ffmpeg … -f rtsp rtsp://127.0.0.1:8554/NAME'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "demo" -d 'Serve the built-in test pattern, without a camera, at rtsp://127.0.0.1:8554/'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "upgrade" -d 'Have a running relay hand its clients and cameras over to the program that now lies at its path, as on SIGUSR2, and print the outcome'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "top" -d 'Show a running relay\'s live table, with its clients'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "streams" -d 'List a running relay\'s streams: URL, state, clients and errors; add or remove a stream; disconnect a client'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "hash-password" -d 'Print the hashes of a user\'s password, which is read from standard input'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "token" -d 'Print a link that lets anyone who has it watch one stream in a browser until it expires'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "generate" -d 'Write the man pages and shell completions, for packages'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "check" -d 'Validate a configuration file: reports every error with its line and how to fix it'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l config -d 'The configuration file [default: /etc/rtsprelay/rtsprelay.toml, if it exists]' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l source -d 'A camera to serve without a file, at rtsp://HOST:8554/ : rtsp[s]://[USER:PASSWORD@]HOST[:PORT]/PATH, or `test`. Other users of this machine can see the command line; to hide a password, use a file' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l listen -d 'Address to serve RTSP on; can be repeated. Port 0 chooses a free port' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l http -d 'Address to serve the pages for browsers, /metrics (Prometheus), /status (JSON) and /healthz on' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l workers -d 'Threads that serve clients; 0 for one per core' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l io -d 'How data is sent' -r -f -a "auto\t'io_uring if it works, otherwise epoll with a warning'
uring\t'io_uring, or fail at startup'
epoll\t'epoll'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l zero-copy -d 'Which sends lend their pages to the kernel instead of having it copy them' -r -f -a "auto\t'Large ones to other machines, until the kernel reports that it copies them'
on\t'All TCP sends'
off\t'None'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l report-format -d 'Format of the reports on standard output' -r -f -a "auto\t'A live table on a terminal, otherwise a line'
line\t'A short line about all streams'
table\t'A table'
logfmt\t'Lines of key=value'
json\t'One JSON object per line'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l report-every -d 'Time between two reports, such as 1s; 0 for only the summary at exit [default: 1min for the format line, otherwise 1s]' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l listen -d 'Address to serve RTSP on; can be repeated. Port 0 chooses a free port' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l http -d 'Address to serve the pages for browsers, /metrics (Prometheus), /status (JSON) and /healthz on' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l workers -d 'Threads that serve clients; 0 for one per core' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l io -d 'How data is sent' -r -f -a "auto\t'io_uring if it works, otherwise epoll with a warning'
uring\t'io_uring, or fail at startup'
epoll\t'epoll'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l zero-copy -d 'Which sends lend their pages to the kernel instead of having it copy them' -r -f -a "auto\t'Large ones to other machines, until the kernel reports that it copies them'
on\t'All TCP sends'
off\t'None'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l report-format -d 'Format of the reports on standard output' -r -f -a "auto\t'A live table on a terminal, otherwise a line'
line\t'A short line about all streams'
table\t'A table'
logfmt\t'Lines of key=value'
json\t'One JSON object per line'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l report-every -d 'Time between two reports, such as 1s; 0 for only the summary at exit [default: 1min for the format line, otherwise 1s]' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand upgrade" -l pid -d 'The relay\'s process id [default: the only relay that runs on this machine]' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand upgrade" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand top" -l http -d 'Address of its HTTP server (`http` in its configuration), with a user name if it requires one. Other users of this machine can see the command line; to hide a password, use --password-file' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand top" -l password-file -d 'A file with the user\'s password on its first line' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand top" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and not __fish_seen_subcommand_from add remove end" -l http -d 'Address of its HTTP server (`http` in its configuration), with a user name if it requires one. Other users of this machine can see the command line; to hide a password, use --password-file' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and not __fish_seen_subcommand_from add remove end" -l password-file -d 'A file with the user\'s password on its first line' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and not __fish_seen_subcommand_from add remove end" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and not __fish_seen_subcommand_from add remove end" -f -a "add" -d 'Add a stream'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and not __fish_seen_subcommand_from add remove end" -f -a "remove" -d 'Remove a stream'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and not __fish_seen_subcommand_from add remove end" -f -a "end" -d 'Disconnect a client'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and __fish_seen_subcommand_from add" -l source -d 'Its source: rtsp[s]://…, "publish" or "test". Other users of this machine can see the command line; without this option the stream\'s keys are read from standard input, in the format of a [[stream]] table in the configuration' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand streams; and __fish_seen_subcommand_from end" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand hash-password" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand token" -l user -d 'The user whose right to the stream the link grants; changing the user\'s password invalidates it' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand token" -l stream -d 'The stream' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand token" -l for -d 'How long the link is valid, such as 30m or 48h' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand token" -l config -d 'The configuration file' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand token" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand generate" -l dir -d 'The output directory' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand generate" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand check" -l config -d 'The configuration file' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand check" -s h -l help -d 'Print help'
