#!/usr/bin/env php
<?php
// A chat with names and history, as a handler of WebSockets: RELAY_WS_HANDLER=/srv/chat.php FOLDER
//
// The relay starts one for each connection. Clients open ws://…/ws/ROOM?name=Anna and send text. The last messages of a
// room are kept in FOLDER, which the web server's user must be able to write to.
const KEPT = 20;
ini_set('display_errors', 'stderr'); // a warning is no action
[$folder, $room, $name, $since] = [$argv[1], '', '', 0];

function act(string $action, $value): void
{
    fwrite(STDOUT, json_encode([$action => $value], JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
}

// The last messages of the room; with one more, if there is one. The lock keeps the other connections' handlers out.
function history(?string $message = null): array
{
    global $folder, $room;
    $file = fopen("$folder/" . hash('sha256', $room), 'c+');
    flock($file, LOCK_EX);
    $messages = array_map('json_decode', array_filter(explode("\n", stream_get_contents($file)), 'strlen'));
    if ($message !== null) {
        $messages = [...array_slice($messages, 1 - KEPT), [microtime(true) * 1000, $message]];
        ftruncate($file, 0);
        rewind($file);
        fwrite($file, implode("\n", array_map(fn ($said) => json_encode($said, JSON_INVALID_UTF8_SUBSTITUTE), $messages)) . "\n");
    }
    fclose($file);
    return $messages;
}

while (($line = fgets(STDIN)) !== false) {
    $event = json_decode($line, true);
    switch ($event['event']) {
        case 'started':
            [$room, $since] = [$event['channel'], $event['time']];
            break;
        case 'authenticate':
            parse_str($event['query'], $query);
            $name = is_string($query['name'] ?? null) ? substr(trim($query['name']), 0, 30) : '';
            act('accept', $name !== '');
            break;
        case 'open':
            foreach (history() as [$said, $message]) if ($said < $since) act('send', $message); // the others come by themselves
            act('broadcast', "* $name has come");
            break;
        case 'text':
            history("$name: {$event['text']}");
            act('broadcast', "$name: {$event['text']}");
            act('send', "$name: {$event['text']}");
            break;
        case 'fifo': // from the application: uhst-relay notify ROOM
            act('send', is_string($event['data']) ? $event['data'] : json_encode($event['data']));
            break;
        case 'before_close':
            if ($name !== '') act('broadcast', "* $name has left");
    }
}
