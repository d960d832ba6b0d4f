//! End to end: what a user of the relay relies on, seen from outside.
//!
//! The protocol is tested through each web server, started from the files in `deploy/`, through the program's own server
//! (`serve::`), and on the bare program (`bare::`), where the test itself plays the web server. A name tells what a user
//! would lose if the test failed.
//!
//! `tests/run` builds the program and installs the servers first. A server that is not there skips its tests with a
//! line on stderr, or fails them when `CI=true`.

/// One test a topic, in the module of a door: `cargo test lighttpd::` runs all that concerns lighttpd.
macro_rules! tests {
    ($door:ident: $($file:ident :: $topic:ident,)*) => {
        $( #[test] fn $topic() { crate::$file::$topic(crate::door::Door::$door); } )*
    };
    (Behind($proxy:ident): $($file:ident :: $topic:ident,)*) => {
        $( #[test] fn $topic() { crate::$file::$topic(crate::door::Door::Behind(crate::proxies::Proxy::$proxy)); } )*
    };
}

macro_rules! protocol_through {
    ($door:ident) => {
        tests! { $door:
            protocol::a_host_and_a_client_talk_both_ways,
            protocol::a_broadcast_reaches_every_client,
            protocol::a_message_waits_for_a_host_that_opens_later,
            protocol::a_reply_waits_for_a_client_that_opens_later,
            protocol::everybody_learns_who_left,
            protocol::nobody_believes_in_a_delivery_to_someone_who_left,
            protocol::a_host_that_nobody_listens_as_reaches_nobody,
            protocol::a_client_of_a_host_that_left_cannot_listen,
            protocol::a_stream_cut_before_its_first_event_loses_nothing,
            protocol::a_cut_stream_goes_on_where_it_broke,
            protocol::a_newer_stream_takes_over,
            protocol::within_the_grace_an_absence_goes_unnoticed,
            protocol::a_host_id_in_use_is_refused,
            protocol::a_wrong_request_says_what_is_wrong,
            protocol::a_refusal_reaches_whoever_sent_a_body,
            protocol::pages_of_other_sites_may_call,
            protocol::pages_of_unlisted_sites_may_not_call,
            protocol::head_and_other_methods_are_answered,
            protocol::json_arrives_byte_for_byte,
            protocol::a_ping_answers_the_number_it_was_given,
            protocol::an_application_with_the_secret_mints_tokens,
            protocol::forged_tokens_are_refused,
            protocol::host_ids_carry_the_relays_prefix,
            protocol::a_web_query_is_never_a_command_line,
            protocol::strange_host_ids_are_just_ids,
            protocol::only_the_program_itself_is_the_relay,
            protocol::a_large_message_arrives_and_a_larger_one_is_refused,
            protocol::a_host_serves_forty_clients_at_once,
            protocol::an_idle_stream_is_kept_alive,
            bus::users_hear_each_other_in_one_order_and_not_themselves,
            bus::a_waiting_poll_is_answered_when_something_comes,
            bus::a_bus_is_a_stream_that_goes_on_where_it_broke,
            bus::nobody_posts_as_a_registered_user,
            bus::a_wrong_call_says_what_is_wrong,
        }
    };
}

macro_rules! pipe_through {
    ($door:ident) => {
        tests! { $door:
            cama::a_body_reaches_who_waits_for_it,
            cama::both_directions_flow_at_once,
            cama::chunks_arrive_and_their_sum_is_told,
            cama::what_a_sender_says_of_its_body_is_told_to_the_receiver,
            cama::a_body_flows_before_it_is_complete,
            cama::chunks_flow_before_the_body_ends,
            cama::deleting_a_session_answers_everybody_in_it,
            cama::who_waits_in_vain_is_told_in_time,
            cama::a_second_receiver_is_refused_and_a_second_sender_waits,
            cama::a_secure_session_serves_the_address_its_host_named,
            cama::a_wrong_pipe_request_says_what_is_wrong,
            cama::the_token_works_without_a_cookie,
            cama::a_sender_whose_receiver_leaves_is_told,
        }
    };
}

/// Where the far end's header fields come through.
macro_rules! ptth_through {
    ($door:ident) => {
        tests! { $door:
            ptth::a_server_behind_a_firewall_is_reached,
            ptth::a_wrong_ptth_request_says_what_is_wrong,
            ptth::what_an_answer_says_passes_through_and_nothing_else,
            ptth::the_application_alone_says_what_other_origins_may,
            ptth::an_application_is_told_who_asks_and_which_way,
            ptth::an_answer_with_neither_length_nor_body_arrives,
            ptth::an_answer_flows_before_it_is_complete,
            ptth::each_of_several_listeners_gets_its_own_requests,
            ptth::an_answer_whose_head_is_too_large_is_told_at_once,
        }
    };
}

macro_rules! websockets_through {
    ($door:ident) => {
        tests! { $door:
            ws::messages_reach_the_others_in_one_order,
            ws::a_wrong_handshake_says_what_is_wrong,
            ws::a_client_and_its_application_agree_on_a_subprotocol,
            ws::no_websocket_passes_through_a_tunnel,
            ws::frames_are_taken_as_the_rfc_says,
            ws::a_handler_is_told_every_event_in_order,
            ws::a_connection_that_breaks_is_said_goodbye,
            ws::a_handler_ends_when_the_relay_is_killed,
            ws::a_handler_that_fails_takes_nobody_else_with_it,
            ws::the_application_reaches_everybody,
            ws::stopping_says_goodbye,
            ws::a_flood_closes_its_own_connection_and_no_other,
            ws::only_the_registered_post_where_only_they_may,
            ws::the_chat_of_the_examples_works,
            ws::the_autobahn_suite_is_content,
        }
    };
}

/// All five protocols through a reverse proxy, configured with the block that `deploy/README.md` prints.
macro_rules! reverse_proxy {
    ($module:ident = $proxy:ident) => {
        mod $module {
            tests! { Behind($proxy):
                protocol::a_host_and_a_client_talk_both_ways,
                protocol::a_cut_stream_goes_on_where_it_broke,
                protocol::nobody_believes_in_a_delivery_to_someone_who_left,
                protocol::a_refusal_reaches_whoever_sent_a_body,
                protocol::pages_of_other_sites_may_call,
                protocol::a_large_message_arrives_and_a_larger_one_is_refused,
                protocol::an_idle_stream_is_kept_alive,
                bus::users_hear_each_other_in_one_order_and_not_themselves,
                bus::a_waiting_poll_is_answered_when_something_comes,
                bus::a_bus_is_a_stream_that_goes_on_where_it_broke,
                cama::a_body_reaches_who_waits_for_it,
                cama::both_directions_flow_at_once,
                cama::chunks_arrive_and_their_sum_is_told,
                cama::a_body_flows_before_it_is_complete,
                cama::chunks_flow_before_the_body_ends,
                ptth::a_server_behind_a_firewall_is_reached,
                ptth::what_an_answer_says_passes_through_and_nothing_else,
                ptth::an_answer_flows_before_it_is_complete,
                ws::messages_reach_the_others_in_one_order,
                ws::frames_are_taken_as_the_rfc_says,
                ws::stopping_says_goodbye,
                proxies::what_the_relay_says_of_itself_is_below_the_path,
                proxies::the_relay_knows_who_is_behind_the_proxy,
                proxies::who_is_silent_for_longer_than_a_minute_is_not_cut,
            }
        }
    };
}

macro_rules! web_server {
    ($module:ident = $door:ident) => {
        mod $module {
            protocol_through!($door);
            pipe_through!($door);
            tests! { $door:
                bus::an_id_beyond_the_newest_means_from_now_on,
                web::a_body_arrives_however_its_length_is_told,
                web::an_answer_arrives_however_large_the_body_was,
                web::what_the_relay_keeps_is_not_on_the_web,
                web::stopping_the_server_leaves_no_process_behind,
                web::the_published_client_works,
            }
        }
    };
}

mod bare;
mod bus;
mod cama;
mod door;
mod pages;
mod place;
mod protocol;
mod ptth;
mod relay;
mod serve;
mod server;
mod store;
mod stream;
mod token;
mod topics;
mod web;
mod ws;

mod cgi;
mod cluster;
mod command_line;
mod dist;
mod endurance;
mod far;
mod faults;
mod five_minutes;
mod house;
mod limits;
mod machines;
mod manual;
mod outages;
mod presence;
mod promise;
mod proxies;
mod redis;
mod settings;
mod shared_hosts;
mod unchanged;

web_server!(lighttpd = Lighttpd);
web_server!(apache_event = ApacheEvent);
web_server!(apache_prefork = ApachePrefork);
web_server!(mini_httpd = MiniHttpd);
web_server!(nginx_fcgiwrap = NginxFcgiwrap);

reverse_proxy!(behind_nginx = Nginx);
reverse_proxy!(behind_apache = Apache);
reverse_proxy!(behind_caddy = Caddy);

mod ptth_of_lighttpd {
    ptth_through!(Lighttpd);
    tests! { Lighttpd:
        ptth::what_the_web_server_refuses_stays_refused,
        ptth::a_server_that_leads_to_itself_is_told_so,
        ptth::a_request_whose_listener_died_is_given_to_another,
        ptth::a_large_answer_flows_through_little_memory,
        ptth::whoever_leaves_half_way_is_told,
    }
}

mod ptth_of_apache_event {
    ptth_through!(ApacheEvent);
}

mod ptth_of_apache_prefork {
    ptth_through!(ApachePrefork);
}

mod ptth_of_nginx_fcgiwrap {
    ptth_through!(NginxFcgiwrap);
}

/// Where a web server looks at the answer only after it has passed the whole body on.
mod patient_senders {
    mod apache_event {
        tests! { ApacheEvent:
            cama::a_slow_sender_whose_receiver_leaves_is_told,
            cama::a_sender_that_goes_on_when_its_receiver_has_left_is_told,
        }
    }
    mod nginx {
        tests! { NginxFcgiwrap: cama::a_slow_sender_whose_receiver_leaves_is_told, }
    }
}

mod ptth_of_mini_httpd {
    tests! { MiniHttpd: ptth::a_far_end_whose_header_fields_are_lost_is_told, }
}

mod ptth_of_serve {
    ptth_through!(Serve);
    tests! { Serve:
        ptth::the_requests_are_what_the_published_relay_sends,
        ptth::a_server_that_leads_to_itself_is_told_so,
        ptth::a_request_is_given_to_far_ends_twice_at_most,
        ptth::a_request_whose_listener_died_is_given_to_another,
        ptth::who_waits_in_vain_for_an_answer_or_a_request_is_told_in_time,
        ptth::a_large_answer_flows_through_little_memory,
        ptth::whoever_leaves_half_way_is_told,
        ptth::an_answer_that_breaks_off_at_once_has_begun,
        ptth::fifty_clients_get_their_own_answers_while_listeners_die,
    }
}

mod pipe_of_lighttpd {
    tests! { Lighttpd:
        cama::curl_uploads_and_downloads,
        cama::a_large_body_flows_through_little_memory,
        cama::a_receiver_that_leaves_half_way_is_told_in_bytes,
        cama::a_sender_that_leaves_half_way_leaves_half_a_body,
        cama::deleting_a_session_ends_what_flows,
        cama::only_a_named_proxy_speaks_for_others,
    }
}

mod pipe_of_serve {
    pipe_through!(Serve);
    tests! { Serve:
        web::an_answer_arrives_however_large_the_body_was,
        cama::curl_uploads_and_downloads,
        cama::a_large_body_flows_through_little_memory,
        cama::a_receiver_that_leaves_half_way_is_told_in_bytes,
        cama::a_sender_that_leaves_half_way_leaves_half_a_body,
        cama::deleting_a_session_ends_what_flows,
        cama::who_pauses_keeps_nobody_waiting,
        cama::a_session_ends_after_its_last_use,
        cama::only_a_named_proxy_speaks_for_others,
    }
}

mod websockets_of_serve {
    websockets_through!(Serve);
    tests! { Serve: ws::a_client_that_goes_before_it_is_let_in_is_not_waited_for, }
}

mod websockets_of_lighttpd {
    websockets_through!(Lighttpd);
}

mod websockets_elsewhere {
    mod apache {
        tests! { ApacheEvent: ws::another_web_server_says_what_to_do, ws::no_websocket_passes_through_a_tunnel, }
    }
    mod mini_httpd {
        tests! { MiniHttpd: ws::another_web_server_says_what_to_do, }
    }
    mod nginx {
        tests! { NginxFcgiwrap: ws::another_web_server_says_what_to_do, ws::no_websocket_passes_through_a_tunnel, }
    }
}

mod browser {
    tests! { Lighttpd: web::the_page_works_in_a_browser, ws::two_tabs_chat, }

    mod through_serve {
        tests! { Serve: ws::two_tabs_chat, }
    }

    #[test]
    fn the_steps_of_the_readme_lead_to_a_chat() {
        crate::five_minutes::the_steps_of_the_readme_lead_to_a_chat();
    }

    mod of_the_examples {
        #[test]
        fn the_pages_of_serve_work() {
            crate::pages::of_serve_work_in_a_browser();
        }

        #[test]
        fn the_pages_beside_a_cgi_program_work() {
            crate::pages::beside_a_cgi_program_work_in_a_browser();
        }

        #[test]
        fn the_picture_of_the_readme_can_be_made_again() {
            crate::pages::the_picture_of_the_readme_can_be_made_again();
        }

        #[test]
        fn the_published_client_survives() {
            crate::pages::the_published_client_survives_in_a_browser();
        }
    }

    #[test]
    fn the_page_of_serve_works_in_a_browser() {
        let relay = crate::serve::Serve::new();
        crate::web::page_works_in_a_browser(&format!("{}/", relay.url().trim_end_matches('/')), &["serve"]);
    }
}
