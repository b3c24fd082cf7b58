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
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "run" -d 'Serve the streams of a configuration file, or one camera without a file'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "demo" -d 'Serve the built-in test pattern, without a camera, at rtsp://127.0.0.1:8554/test'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "top" -d 'Show the live table of a relay that runs, with its clients'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "hash-password" -d 'Print the hashes that stand for a user\'s password, which is read from standard input'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "generate" -d 'Write the man pages and shell completions, for packages'
complete -c rtsprelay -n "__fish_rtsprelay_needs_command" -f -a "check" -d 'Validate a configuration file: every fault with line and cure'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l config -d 'The configuration file [default: /etc/rtsprelay/rtsprelay.toml]' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l source -d 'A camera to serve without a file, at rtsp://HOST:8554/: rtsp[s]://[USER:PASSWORD@]HOST[:PORT]/PATH, or `test`. Other users of this machine may see it; a file keeps a password to itself' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l listen -d 'Address to serve RTSP at; may be given several times. Port 0 takes a free one' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l http -d 'Address to serve /metrics (Prometheus), /status (JSON) and /healthz at' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l workers -d 'Threads that serve clients; 0 for one per core' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l io -d 'What drives the sockets' -r -f -a "auto\t'io_uring where it works, else epoll with a warning'
uring\t'io_uring, or no start'
epoll\t'epoll'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l zero-copy -d 'Which sends lend their pages to the kernel instead of having them copied' -r -f -a "auto\t'Large ones to other machines, until the kernel reports that it copies'
on\t'All over TCP'
off\t'None'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l report-format -d 'How reports on standard output look' -r -f -a "auto\t'A live table on a terminal, else logfmt'
table\t'A table'
logfmt\t'Lines of key=value'
json\t'A JSON object a line'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l report-every -d 'Time between two reports, such as 1s; 0 for none but the summary at the end' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l test-delay -d 'For tests: holds chunks back between chunker and shards' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l test-panic -d 'For tests: the code of sources fails so long after their start, and that of clients who ask for it' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l test-nonce-lifetime -d 'For tests: how long nonces are good' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -l test-unmeasured -d 'For tests of what it costs: counts nothing of what is sent, and reports nothing'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l listen -d 'Address to serve RTSP at; may be given several times. Port 0 takes a free one' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l http -d 'Address to serve /metrics (Prometheus), /status (JSON) and /healthz at' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l workers -d 'Threads that serve clients; 0 for one per core' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l io -d 'What drives the sockets' -r -f -a "auto\t'io_uring where it works, else epoll with a warning'
uring\t'io_uring, or no start'
epoll\t'epoll'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l zero-copy -d 'Which sends lend their pages to the kernel instead of having them copied' -r -f -a "auto\t'Large ones to other machines, until the kernel reports that it copies'
on\t'All over TCP'
off\t'None'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l report-format -d 'How reports on standard output look' -r -f -a "auto\t'A live table on a terminal, else logfmt'
table\t'A table'
logfmt\t'Lines of key=value'
json\t'A JSON object a line'"
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l report-every -d 'Time between two reports, such as 1s; 0 for none but the summary at the end' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l test-delay -d 'For tests: holds chunks back between chunker and shards' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l test-panic -d 'For tests: the code of sources fails so long after their start, and that of clients who ask for it' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l test-nonce-lifetime -d 'For tests: how long nonces are good' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -l test-unmeasured -d 'For tests of what it costs: counts nothing of what is sent, and reports nothing'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand top" -l http -d 'Address of its HTTP server (`http` in its configuration), with a user\'s name where it asks for one. Other users of this machine may see a password here; a file keeps it to itself' -r
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand top" -l password-file -d 'A file with that user\'s password on its first line' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand top" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand hash-password" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand generate" -l dir -d 'Where to' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand generate" -s h -l help -d 'Print help'
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand check" -l config -d 'The configuration file' -r -F
complete -c rtsprelay -n "__fish_rtsprelay_using_subcommand check" -s h -l help -d 'Print help'
