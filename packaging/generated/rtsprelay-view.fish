complete -c rtsprelay-view -l transport -d 'Over what the media comes' -r -f -a "tcp\t'In the RTSP connection'
udp\t'In datagrams of their own'"
complete -c rtsprelay-view -l user -d 'The user name to log in with' -r
complete -c rtsprelay-view -l password-file -d 'A file with the password to log in with, on its first line' -r -F
complete -c rtsprelay-view -l frames -d 'Stop after so many decoded pictures' -r
complete -c rtsprelay-view -l seconds -d 'Stop after so many seconds' -r
complete -c rtsprelay-view -l snapshot -d 'Write the last picture to this PNG file at the end; with nothing else said, the first picture, and stop' -r -F
complete -c rtsprelay-view -l patience -d 'Without a window or terminal: give up after so many seconds without a new picture' -r
complete -c rtsprelay-view -l window -d 'Show in a window, whatever the environment looks like'
complete -c rtsprelay-view -l terminal -d 'Show in the terminal, whatever the environment looks like'
complete -c rtsprelay-view -l headless -d 'Show nothing: one line of numbers a second'
complete -c rtsprelay-view -l json -d 'Numbers as JSON, one object a line; shows nothing'
complete -c rtsprelay-view -l fullscreen -d 'Begin in full screen'
complete -c rtsprelay-view -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rtsprelay-view -s V -l version -d 'Print version'
