//! External authentication.

use std::sync::Arc;

use super::state::Core;
use crate::access::outside::Outside;
use crate::egress::Egress;

impl<E: Egress> Core<E> {
    /// Sets the external authentication server; `None` for none. Existing sessions stay.
    pub fn set_outside(&mut self, outside: Option<Arc<Outside>>) {
        self.server.set_outside(outside);
    }
}
